#include "droppeft/bandit/selector.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "droppeft/bandit/any_selector.hpp"
#include "droppeft/bandit/epsilon_greedy.hpp"
#include "droppeft/bandit/exp3.hpp"
#include "droppeft/bandit/kl_ucb.hpp"
#include "droppeft/bandit/locked.hpp"
#include "droppeft/bandit/moss.hpp"
#include "droppeft/bandit/softmax.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/bandit/ucb_tuned.hpp"
#include "droppeft/bandit/ucb_v.hpp"
#include "droppeft/random/stream.hpp"
#include "laws.hpp"

using namespace droppeft;

namespace {

// A policy written by a user: the highest mean, and now and then another arm.
struct Restless {
  double share = 0.1;

  static constexpr std::string_view name = "restless";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const { check(share >= 0 && share <= 1, "Restless: share"); }
  nlohmann::json settings() const { return {{"share", share}}; }
  auto scorer(const ArmTotals& totals, Stream& stream) const {
    return [mean = totals.mean(), explore = stream.uniform() < share](const ArmRecord& arm) {
      return explore ? 0.0 : arm.mean(mean);
    };
  }
};

// A selector written by a user: each arm in its turn.
class RoundRobin {
 public:
  explicit RoundRobin(std::size_t arms) : records_(arms) {}
  Ticket select() {
    const Ticket ticket{next_, static_cast<std::size_t>(next_) % arms()};
    ++next_;
    ++records_[ticket.arm].pending;
    return ticket;
  }
  void update(Ticket ticket, double reward) {
    expire(ticket);
    ++records_[ticket.arm].plays;
    records_[ticket.arm].sum += reward;
  }
  void expire(Ticket ticket) { --records_[ticket.arm].pending; }
  std::size_t arms() const { return records_.size(); }
  ArmRecord record(std::size_t arm) const { return records_[arm]; }
  nlohmann::json save() const { return next_; }
  void load(const nlohmann::json& state) { next_ = state.get<std::uint64_t>(); }

 private:
  std::vector<ArmRecord> records_;
  std::uint64_t next_ = 0;
};
static_assert(Selector<RoundRobin>);

using RestlessSelector = BanditSelector<Restless>;
static_assert(Selector<RestlessSelector> && Selector<UcbSelector> &&
              Selector<BetaThompsonSelector> && Selector<GaussianThompsonSelector>);

double payout(std::size_t arm, Stream& world) {
  return world.uniform() < 0.2 + 0.1 * static_cast<double>(arm % 6) ? 1.0 : 0.0;
}

// Plays `steps` rounds with up to `spread` tickets open; rewards come in a mixed order, some never.
template <class S>
std::vector<std::size_t> play(S& selector, Stream& world, std::vector<Ticket>& open, int steps,
                              std::size_t spread) {
  std::vector<std::size_t> arms;
  for (int i = 0; i < steps; ++i) {
    open.push_back(selector.select());
    arms.push_back(open.back().arm);
    if (open.size() < spread) continue;
    std::swap(open[world() % open.size()], open.back());
    if (world() % 8 == 0)
      selector.expire(open.back());
    else
      selector.update(open.back(), payout(open.back().arm, world));
    open.pop_back();
  }
  return arms;
}

}  // namespace

TEST_CASE_TEMPLATE("every arm is tried first, also when all plays are chosen before any answer", S,
                   UcbSelector, BetaThompsonSelector, GaussianThompsonSelector, RestlessSelector) {
  std::set<std::vector<std::size_t>> orders;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    S selector(5, {.stream = Stream(seed)});
    std::vector<std::size_t> order;
    for (int i = 0; i < 5; ++i) order.push_back(selector.select().arm);
    CHECK(std::set(order.begin(), order.end()).size() == 5);
    orders.insert(order);
  }
  CHECK(orders.size() > 10);
}

TEST_CASE("plays that wait for their reward make a batch spread over the arms") {
  UcbSelector selector(4);
  std::vector<int> plays(4, 0);
  for (int i = 0; i < 40; ++i) ++plays[selector.select().arm];
  CHECK(plays == std::vector<int>(4, 10));
}

TEST_CASE("rewards may come late and in any order") {
  const auto state_after = [](std::vector<std::size_t> order) {
    UcbSelector selector(3, {.stream = Stream(1)});
    std::vector<Ticket> tickets;
    for (int i = 0; i < 6; ++i) tickets.push_back(selector.select());
    for (const std::size_t i : order)
      selector.update(tickets[i], 0.25 * static_cast<double>(tickets[i].arm));
    return selector.save();
  };
  CHECK(state_after({0, 1, 2, 3, 4, 5}) == state_after({5, 2, 0, 4, 1, 3}));
}

TEST_CASE("a ticket counts once: used, expired, forged and foreign tickets are refused") {
  UcbSelector selector(3);
  const Ticket first = selector.select();
  const Ticket second = selector.select();
  selector.update(first, 1);
  CHECK_THROWS_WITH_AS(selector.update(first, 1),
                       doctest::Contains("BanditSelector::update: ticket 0 of arm"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(selector.expire(first),
                       doctest::Contains("BanditSelector::expire: ticket 0"),
                       std::invalid_argument);
  selector.expire(second);
  CHECK_THROWS_AS(selector.update(second, 1), std::invalid_argument);
  CHECK_THROWS_AS(selector.update({99, 0}, 1), std::invalid_argument);
  const Ticket third = selector.select();
  CHECK_THROWS_AS(selector.update({third.id, (third.arm + 1) % 3}, 1), std::invalid_argument);
  CHECK(selector.record(third.arm).pending == 1);
  selector.update(third, 0.5);
  CHECK(selector.record(third.arm).mean() == 0.5);
}

TEST_CASE("an expired play leaves no trace but the numbers drawn") {
  UcbSelector selector(2);
  const Ticket ticket = selector.select();
  selector.expire(ticket);
  CHECK(selector.record(ticket.arm).visits() == 0);
}

TEST_CASE_TEMPLATE("rewards that are no numbers or out of range are refused and change nothing", S,
                   UcbSelector, BetaThompsonSelector, GaussianThompsonSelector) {
  S selector(2);
  const Ticket ticket = selector.select();
  const auto before = selector.save();
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
        -std::numeric_limits<double>::infinity(), 1e200})
    CHECK_THROWS_WITH_AS(selector.update(ticket, bad), doctest::Contains("reward must be in ["),
                         std::invalid_argument);
  CHECK(selector.save() == before);
  selector.update(ticket, 1);
}

TEST_CASE("wrong arguments of a selector are refused") {
  CHECK_THROWS_WITH_AS(UcbSelector(0), "BanditSelector: arms must be at least 1, got 0",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(UcbSelector(2).record(2), "BanditSelector: arm must be below 2, got 2",
                       std::invalid_argument);
}

TEST_CASE("one arm is played for ever") {
  UcbSelector selector(1);
  for (int i = 0; i < 5; ++i) CHECK(selector.select().arm == 0);
}

TEST_CASE("ties are broken evenly") {
  std::vector<int> first(4, 0);
  for (std::uint64_t seed = 0; seed < 4000; ++seed)
    ++first[UcbSelector(4, {.stream = Stream(seed)}).select().arm];
  for (const int times : first) {
    const double sigmas = (times - 1000) / std::sqrt(4000 * 0.25 * 0.75);
    CHECK(std::abs(sigmas) <= 5);
  }
}

TEST_CASE("a window counts the last rewards only") {
  GaussianThompsonSelector selector(2, {.window = 4});
  std::vector<std::pair<std::size_t, double>> history;
  Stream world(3);
  for (int i = 0; i < 50; ++i) {
    const Ticket ticket = selector.select();
    // Wildly different sizes: what left the window must leave no rounding error behind.
    const double reward = i % 7 == 0 ? 1e90 : world.uniform();
    selector.update(ticket, reward);
    history.emplace_back(ticket.arm, reward);
    for (std::size_t arm = 0; arm < 2; ++arm) {
      double plays = 0;
      double sum = 0;
      for (std::size_t j = history.size() - std::min<std::size_t>(4, history.size());
           j < history.size(); ++j)
        if (history[j].first == arm) {
          ++plays;
          sum += history[j].second;
        }
      CHECK(selector.record(arm).plays == plays);
      CHECK(selector.record(arm).sum == doctest::Approx(sum).epsilon(1e-14));
    }
  }
}

TEST_CASE("with a window a selector follows rewards that change, without one it lags") {
  const auto late_share = [](std::size_t window) {
    GaussianThompsonSelector selector(2, {.stream = Stream(4), .window = window});
    Stream world(5);
    int good = 0;
    for (int i = 0; i < 3000; ++i) {
      const Ticket ticket = selector.select();
      const std::size_t best = i < 2000 ? 0 : 1;
      if (i >= 2500) good += ticket.arm == best;
      selector.update(ticket, world.uniform() < (ticket.arm == best ? 0.8 : 0.3) ? 1 : 0);
    }
    return good / 500.0;
  };
  CHECK(late_share(100) > 0.75);
  CHECK(late_share(0) < 0.5);
}

TEST_CASE_TEMPLATE("a selector that was saved and loaded goes on bit for bit", S, UcbSelector,
                   UcbVSelector, UcbTunedSelector, MossSelector, KlUcbSelector,
                   GaussianKlUcbSelector, BetaThompsonSelector, GaussianThompsonSelector,
                   NormalInverseGammaThompsonSelector, EpsilonGreedySelector, SoftmaxSelector,
                   Exp3Selector, RestlessSelector) {
  static_assert(Selector<S>);
  for (const auto& [window, discount, range] :
       {std::tuple(0U, 1.0, RewardRange{}), std::tuple(7U, 1.0, RewardRange::unknown()),
        std::tuple(64U, 1.0, RewardRange{-1, 2}), std::tuple(0U, 0.9, RewardRange{})}) {
    typename S::Options options;
    options.window = window;
    options.discount = discount;
    options.range = range;
    options.stream = Stream(0xFEDCBA9876543210).fold(0xFFFFFFFFFFFFFFFF);
    S undisturbed(6, options);
    Stream world(9);
    std::vector<Ticket> open;
    play(undisturbed, world, open, 101, 9);
    undisturbed.add_arm();
    undisturbed.retire(2);
    play(undisturbed, world, open, 20, 9);

    options.stream = Stream(1);
    S resumed(6, options);
    const auto state = undisturbed.save();
    resumed.load(nlohmann::json::parse(state.dump()));
    CHECK(resumed.save().dump() == state.dump());
    Stream same_world = world;
    auto same_open = open;
    CHECK(play(undisturbed, world, open, 200, 9) == play(resumed, same_world, same_open, 200, 9));
    CHECK(resumed.save().dump() == undisturbed.save().dump());
  }
}

TEST_CASE("a sum that rounding brought above its bound is loaded") {
  UcbSelector selector(1, {.range = {0, 0.1}});
  for (int i = 0; i < 15; ++i) selector.update(selector.select(), 0.1);
  CHECK(selector.record(0).sum > 15 * 0.1);
  UcbSelector loaded(1, {.range = {0, 0.1}});
  loaded.load(selector.save());
  CHECK(loaded.save() == selector.save());
}

TEST_CASE("the state of another selector is refused") {
  const auto state = UcbSelector(3).save();
  CHECK_THROWS_WITH_AS(UcbSelector(4).load(state), "BanditSelector.chooser.arms must be 4, got 3",
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(GaussianThompsonSelector(3).load(state),
                       "BanditSelector.chooser.policy must be \"gaussian_thompson\", got \"ucb1\"",
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(UcbSelector(3, {.policy = {.exploration = 1}}).load(state),
                       doctest::Contains("BanditSelector.chooser.settings must be"),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(UcbSelector(3, {.window = 5}).load(state),
                       doctest::Contains("BanditSelector.rewards.window"), std::runtime_error);
}

TEST_CASE("a corrupted state is refused and the selector stays as it was") {
  BetaThompsonSelector selector(3, {.stream = Stream(2), .window = 8});
  Stream world(1);
  std::vector<Ticket> open;
  play(selector, world, open, 20, 4);
  const auto good = selector.save();
  BetaThompsonSelector other(3, {.window = 8});
  const auto before = other.save();
  const auto refuses = [&](const char* path, const nlohmann::json& value) {
    auto bad = good;
    bad[nlohmann::json::json_pointer(path)] = value;
    CAPTURE(path);
    CAPTURE(value.dump());
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
    CHECK(other.save() == before);
  };
  refuses("/version", 3);
  refuses("/version", nullptr);
  refuses("/chooser/stream", {1, 2});
  refuses("/chooser/stream", {1, 2, 3, 4});
  refuses("/chooser/stream/1", -1);
  refuses("/chooser/stream/1", 0.5);
  refuses("/chooser/stream/1", "1");
  refuses("/chooser/next_id", 0);
  refuses("/chooser/next_id", nullptr);
  refuses("/chooser/open/0/1", 3);
  refuses("/chooser/open/0/2", 1.5);
  refuses("/chooser/open/0", {7, 0});
  refuses("/chooser/open/1", good["chooser"]["open"][0]);
  refuses("/chooser/open/0", 7);
  refuses("/chooser/open", "none");
  refuses("/chooser/active/0", 3);
  refuses("/chooser/active", {1, 0});
  refuses("/range", {0, 2});
  refuses("/rewards/window", 9);
  refuses("/rewards/records/0", 99);
  refuses("/rewards/records/0", nullptr);
  refuses("/rewards/records", nlohmann::json::array());
  refuses("/rewards/rewards/0/1", 2);
  refuses("/rewards/rewards/0/0", 3);
  refuses("/rewards/rewards/8", {0, 0});
  for (const auto& [key, value] : good.items()) {
    auto bad = good;
    bad.erase(key);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
  }
  for (const nlohmann::json& bad : {nlohmann::json(), nlohmann::json(3), nlohmann::json::array()})
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
  other.load(good);
  CHECK(other.save() == good);
}

TEST_CASE("an arm that is added is tried next, one that is retired never again") {
  UcbSelector selector(2, {.stream = Stream(3)});
  Stream world(1);
  std::vector<Ticket> open;
  play(selector, world, open, 50, 4);
  CHECK(selector.add_arm() == 2);
  CHECK(selector.select().arm == 2);

  const Ticket late = selector.select();
  selector.retire(late.arm);
  CHECK(selector.arms() == 3);
  CHECK_FALSE(selector.active(late.arm));
  for (const std::size_t arm : play(selector, world, open, 50, 4)) CHECK(arm != late.arm);
  const double plays = selector.record(late.arm).plays;
  selector.update(late, 1);
  CHECK(selector.record(late.arm).plays == plays + 1);
  CHECK_THROWS_WITH_AS(selector.retire(late.arm), doctest::Contains("BanditSelector::retire: arm"),
                       std::invalid_argument);
  CHECK_THROWS_AS(selector.retire(3), std::invalid_argument);

  for (std::size_t arm = 0; arm < 3; ++arm)
    if (selector.active(arm)) selector.retire(arm);
  CHECK_THROWS_WITH_AS(selector.select(), "BanditSelector::select: all arms are retired",
                       std::invalid_argument);
  CHECK(selector.add_arm() == 3);
  CHECK(selector.select().arm == 3);
}

TEST_CASE_TEMPLATE(
    "a choice among all arms is the choice, one among some is as if there were no "
    "others",
    S, UcbSelector, ThompsonSelector, EpsilonGreedySelector) {
  S whole(4, {.stream = Stream(31)}), told(4, {.stream = Stream(31)});
  S small(2, {.stream = Stream(32)}), some(4, {.stream = Stream(32)});
  const std::size_t all[] = {0, 1, 2, 3}, two[] = {1, 3};
  for (int i = 0; i < 60; ++i) {
    const Ticket ticket = whole.select();
    CHECK(told.select(all) == ticket);
    const Ticket one = small.select();
    const Ticket of_two = some.select(two);
    CHECK(of_two.arm == two[one.arm]);
    CHECK(of_two.probability == one.probability);
    const double reward = 0.1 * static_cast<double>(i % 7);
    for (S* each : {&whole, &told}) each->update(ticket, reward);
    small.update(one, reward);
    some.update(of_two, reward);
  }
  const auto before = some.save();
  const std::size_t twice[] = {1, 1}, unknown[] = {4};
  for (const std::span<const std::size_t> bad :
       {std::span<const std::size_t>(twice), std::span<const std::size_t>(unknown),
        std::span<const std::size_t>()})
    CHECK_THROWS_WITH_AS(some.select(bad), doctest::Contains("::select: arms to choose among must"),
                         std::invalid_argument);
  CHECK(some.save() == before);
}

TEST_CASE("an arm that was added and retired without a play leaves no trace but its number") {
  UcbSelector plain(4, {.stream = Stream(5)});
  UcbSelector changed(4, {.stream = Stream(5)});
  for (int i = 0; i < 200; ++i) {
    if (i % 9 == 0) changed.retire(changed.add_arm());
    const Ticket ticket = plain.select();
    CHECK(changed.select() == ticket);
    const double reward = laws::reward_of(ticket.arm, static_cast<std::size_t>(i));
    plain.update(ticket, reward);
    changed.update(ticket, reward);
  }
}

TEST_CASE_TEMPLATE("a range that is not known is that of the rewards so far", S, UcbSelector,
                   UcbVSelector, UcbTunedSelector, MossSelector, KlUcbSelector) {
  // From the play that shows both ends on, the choices are those of the known range, whatever the
  // unit: a factor of a power of two is exact.
  S known(4, {.stream = Stream(7), .range = {0, 1}});
  S unknown(4, {.stream = Stream(7), .range = RewardRange::unknown()});
  for (std::size_t i = 0; i < 300; ++i) {
    const Ticket ticket = known.select();
    REQUIRE(unknown.select() == ticket);
    const double reward = i < 2 ? static_cast<double>(i) : laws::reward_of(ticket.arm, i);
    known.update(ticket, reward);
    unknown.update(ticket, 1024 * reward);
  }
  const Ticket ticket = unknown.select();
  CHECK_THROWS_AS(unknown.update(ticket, std::nan("")), std::invalid_argument);
}

TEST_CASE("wrong ranges, windows and discounts are refused") {
  using Options = UcbSelector::Options;
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const RewardRange range :
       {RewardRange{1, 1}, RewardRange{2, 1}, RewardRange{0, nan}, RewardRange{nan, 1},
        RewardRange{0, infinity}, RewardRange{-infinity, 0}, RewardRange{0, 1e101}}) {
    Options options;
    options.range = range;
    CHECK_THROWS_WITH_AS(UcbSelector(2, options),
                         doctest::Contains("BanditSelector: range must be"), std::invalid_argument);
  }
  for (const double discount : {0.0, -1.0, 1.01, nan})
    CHECK_THROWS_WITH_AS(UcbSelector(2, {.discount = discount}),
                         doctest::Contains("discount must be in (0, 1], got"),
                         std::invalid_argument);
  CHECK_THROWS_WITH_AS(UcbSelector(2, {.window = 5, .discount = 0.9}),
                       doctest::Contains("exclude each other"), std::invalid_argument);
  UcbSelector selector(2, {.range = {-2, 3}});
  const Ticket ticket = selector.select();
  CHECK_THROWS_WITH_AS(selector.update(ticket, 3.5),
                       "BanditSelector::update (ucb1): reward must be in [-2, 3], got 3.5",
                       std::invalid_argument);
}

TEST_CASE("both ends of a range are rewards, whatever rounding makes of them") {
  for (int low = -20; low < 20; ++low)
    for (int high = low + 1; high <= 20; ++high) {
      UcbSelector selector(1, {.range = {low / 10.0, high / 10.0}});
      selector.update(selector.select(), high / 10.0);
      selector.update(selector.select(), low / 10.0);
    }
}

TEST_CASE("what a discount made next to nothing is forgotten, and the state can be loaded") {
  UcbSelector selector(2, {.discount = 0.9, .range = {0, 0.1}});
  for (int i = 0; i < 10; ++i) selector.update(selector.select(), 0.05);
  selector.retire(1);
  for (int i = 0; i < 9000; ++i) selector.update(selector.select(), 0.1);
  CHECK(selector.record(1).plays == 0);
  UcbSelector loaded(2, {.discount = 0.9, .range = {0, 0.1}});
  loaded.load(selector.save());
  CHECK(loaded.save() == selector.save());
}

TEST_CASE("rewards that are nearly alike do not overflow an unknown range") {
  UcbSelector selector(3, {.range = RewardRange::unknown()});
  std::vector<int> plays(3);
  for (int i = 0; i < 90; ++i) {
    const Ticket ticket = selector.select();
    ++plays[ticket.arm];
    selector.update(ticket, 1e-160 * static_cast<double>(ticket.arm));
  }
  CHECK(plays == std::vector<int>(3, 30));
}

TEST_CASE("with a discount a selector follows rewards that change") {
  GaussianThompsonSelector selector(2, {.stream = Stream(4), .discount = 0.98});
  Stream world(5);
  int good = 0;
  for (int i = 0; i < 3000; ++i) {
    const Ticket ticket = selector.select();
    const std::size_t best = i < 2000 ? 0 : 1;
    if (i >= 2500) good += ticket.arm == best;
    selector.update(ticket, world.uniform() < (ticket.arm == best ? 0.8 : 0.3) ? 1 : 0);
  }
  CHECK(good / 500.0 > 0.75);
}

TEST_CASE("a selector chosen at run time plays as the one that it holds") {
  static_assert(Selector<AnySelector> && std::copyable<AnySelector>);
  KlUcbSelector plain(4, {.stream = Stream(3)});
  AnySelector any = KlUcbSelector(4, {.stream = Stream(3)});
  Stream world(2), same_world(2);
  std::vector<Ticket> open, same_open;
  CHECK(play(plain, world, open, 60, 5) == play(any, same_world, same_open, 60, 5));
  AnySelector copy = any;
  CHECK(play(plain, world, open, 60, 5) == play(copy, same_world, same_open, 60, 5));
  CHECK(copy.save() == plain.save());
  CHECK(any.save() != copy.save());
  any.load(copy.save());
  CHECK(any.save() == copy.save());
  CHECK(any.record(1).plays == plain.record(1).plays);
  any = UcbSelector(4);
  CHECK_THROWS_AS(any.load(copy.save()), std::runtime_error);
}

TEST_CASE("what a selector chosen at run time cannot do it refuses") {
  AnySelector full(UcbSelector(3));
  CHECK(full.add_arm() == 3);
  full.retire(0);
  CHECK(!full.active(0));
  const std::size_t two[] = {1, 2};
  CHECK(full.select(two).arm != 3);

  struct Plain {
    UcbSelector inside{2};
    Ticket select() { return inside.select(); }
    void update(const Ticket& ticket, double reward) { inside.update(ticket, reward); }
    void expire(const Ticket& ticket) { inside.expire(ticket); }
    std::size_t arms() const { return inside.arms(); }
    ArmRecord record(std::size_t arm) const { return inside.record(arm); }
    nlohmann::json save() const { return inside.save(); }
    void load(const nlohmann::json& state) { inside.load(state); }
  };
  AnySelector plain{Plain()};
  CHECK(plain.active(1));
  CHECK(!plain.active(2));
  CHECK_THROWS_WITH_AS(plain.add_arm(), doctest::Contains("has no add_arm"), std::invalid_argument);
  CHECK_THROWS_AS(plain.retire(0), std::invalid_argument);
  CHECK_THROWS_AS(plain.select(two), std::invalid_argument);
}

TEST_CASE("several threads may play one locked selector") {
  LockedSelector selector(UcbSelector(5, {.stream = Stream(6)}));
  static_assert(Selector<LockedSelector<UcbSelector>>);
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 4; ++worker)
    threads.emplace_back([&selector] {
      for (int i = 0; i < 500; ++i) {
        const Ticket ticket = selector.select();
        if (i % 5 == 0)
          selector.expire(ticket);
        else
          selector.update(ticket, 0.1 * static_cast<double>(ticket.arm));
      }
    });
  for (std::thread& thread : threads) thread.join();
  double plays = 0;
  for (std::size_t arm = 0; arm < selector.arms(); ++arm) {
    plays += selector.record(arm).plays;
    CHECK(selector.record(arm).pending == 0);
  }
  CHECK(plays == 1600);
  selector.with([](UcbSelector& inside) { inside.retire(0); });
  CHECK_FALSE(selector.with([](const UcbSelector& inside) { return inside.active(0); }));
  UcbSelector alone(5);
  alone.load(selector.save());
  CHECK(alone.save() == selector.save());
}

TEST_CASE("open tickets are found whatever the order of their ids") {
  OpenTickets open;
  for (const std::uint64_t id : {5U, 1U, 9U}) open.open({id, 0}, "Here");
  CHECK_THROWS_WITH_AS(open.open({9, 1}, "Here"), "Here: ticket 9 is open already",
                       std::invalid_argument);
  open.close({5, 0}, "Here");
  CHECK(open.tickets() == std::vector<Ticket>{{1, 0}, {9, 0}});
}
