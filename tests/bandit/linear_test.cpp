#include "droppeft/bandit/linear.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <boost/math/distributions/normal.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

using Vector = std::vector<double>;

// A policy written by a user: the highest prediction, and now and then another arm.
struct Restless {
  double share = 0.1;

  static constexpr std::string_view name = "restless";

  void validate() const { check(share >= 0 && share <= 1, "Restless: share"); }
  nlohmann::json settings() const { return {{"share", share}}; }
  double score(double mean, double, Stream& stream) const {
    return stream.uniform() < share ? 1e9 : mean;
  }
};
using RestlessSelector = LinearSelector<Restless>;

// A selector written by a user: any arm, whatever the context.
class Chance {
 public:
  Chance(std::size_t arms, std::size_t dimension) : records_(arms), dimension_(dimension) {}
  Ticket select(std::span<const double>) {
    const auto arms = static_cast<double>(records_.size());
    const Ticket ticket{next_++, static_cast<std::size_t>(stream_.uniform() * arms), 1 / arms};
    ++records_[ticket.arm].pending;
    return ticket;
  }
  void update(Ticket ticket, double reward) {
    expire(ticket);
    records_[ticket.arm].add(reward);
  }
  void expire(Ticket ticket) { --records_[ticket.arm].pending; }
  std::size_t arms() const { return records_.size(); }
  std::size_t dimension() const { return dimension_; }
  ArmRecord record(std::size_t arm) const { return records_[arm]; }
  nlohmann::json save() const { return next_; }
  void load(const nlohmann::json& state) { next_ = state.get<std::uint64_t>(); }

 private:
  std::vector<ArmRecord> records_;
  std::size_t dimension_;
  std::uint64_t next_ = 0;
  Stream stream_;
};

static_assert(ContextualSelector<LinUcbSelector> && ContextualSelector<LinThompsonSelector> &&
              ContextualSelector<RestlessSelector> && ContextualSelector<Chance>);

Vector draw(std::size_t dimension, Stream& world, double scale = 1) {
  Vector x(dimension);
  for (double& each : x) each = scale * (2 * world.uniform() - 1);
  return x;
}

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// A^-1 b by Gaussian elimination.
Vector solve(std::vector<Vector> a, Vector b) {
  const std::size_t d = b.size();
  for (std::size_t j = 0; j < d; ++j) {
    std::size_t pivot = j;
    for (std::size_t i = j; i < d; ++i)
      if (std::abs(a[i][j]) > std::abs(a[pivot][j])) pivot = i;
    std::swap(a[j], a[pivot]);
    std::swap(b[j], b[pivot]);
    for (std::size_t i = 0; i < d; ++i) {
      if (i == j) continue;
      const double factor = a[i][j] / a[j][j];
      for (std::size_t k = j; k < d; ++k) a[i][k] -= factor * a[j][k];
      b[i] -= factor * b[j];
    }
  }
  for (std::size_t j = 0; j < d; ++j) b[j] /= a[j][j];
  return b;
}

// The model of one arm in the words of the paper, from all its plays.
struct Plain {
  double ridge = 1;
  std::vector<std::pair<Vector, double>> received;
  std::vector<std::pair<std::uint64_t, Vector>> open;

  std::vector<Vector> matrix(std::size_t d, bool with_open) const {
    std::vector<Vector> a(d, Vector(d));
    const auto add = [&](const Vector& x) {
      for (std::size_t i = 0; i < d; ++i)
        for (std::size_t j = 0; j < d; ++j) a[i][j] += x[i] * x[j];
    };
    for (std::size_t i = 0; i < d; ++i) a[i][i] = ridge;
    for (const auto& [x, reward] : received) add(x);
    if (with_open)
      for (const auto& [id, x] : open) add(x);
    return a;
  }
  Vector weights(std::size_t d) const {
    Vector b(d);
    for (const auto& [x, reward] : received)
      for (std::size_t i = 0; i < d; ++i) b[i] += reward * x[i];
    return solve(matrix(d, false), b);
  }
  double width(const Vector& x) const {
    return std::sqrt(dot(x, solve(matrix(x.size(), true), x)));
  }
  void close(std::uint64_t id) {
    std::erase_if(open, [&](const auto& each) { return each.first == id; });
  }
};

struct Play {
  Ticket ticket;
  Vector context;
};

double payout(const Play& play, Stream& world) {
  return play.context[play.ticket.arm % play.context.size()] + 0.2 * (world.uniform() - 0.5);
}

// Plays `steps` rounds with up to `spread` tickets open; rewards come in a mixed order, some never.
template <class S>
std::vector<std::size_t> play(S& selector, Stream& world, std::vector<Play>& open, int steps,
                              std::size_t spread) {
  std::vector<std::size_t> arms;
  for (int i = 0; i < steps; ++i) {
    const Vector x = draw(selector.dimension(), world);
    open.push_back({selector.select(x), x});
    arms.push_back(open.back().ticket.arm);
    if (open.size() < spread) continue;
    std::swap(open[world() % open.size()], open.back());
    if (world() % 8 == 0)
      selector.expire(open.back().ticket);
    else
      selector.update(open.back().ticket, payout(open.back(), world));
    open.pop_back();
  }
  return arms;
}

// The tickets of 200 plays in which contexts are multiplied by one number, rewards by another.
template <class S>
std::vector<Ticket> tickets(S selector, double of_contexts, double of_rewards) {
  Stream world(7);
  std::vector<Ticket> tickets;
  for (int i = 0; i < 200; ++i) {
    Vector x = draw(selector.dimension(), world);
    const double reward = x[0] * static_cast<double>(i % 3) + world.uniform();
    for (double& each : x) each *= of_contexts;
    tickets.push_back(selector.select(x));
    selector.update(tickets.back(), of_rewards * reward);
  }
  return tickets;
}

// A policy at another scale of the rewards.
LinUcb scaled(LinUcb policy, double factor) { return {policy.alpha * factor}; }
LinThompson scaled(LinThompson policy, double factor) { return {policy.noise_sd * factor}; }

}  // namespace

TEST_CASE("LinUCB plays the highest theta . x + alpha sqrt(x^T A^-1 x), rewards late or never") {
  for (const std::size_t spread : {1U, 7U}) {
    const std::size_t d = 5, arms = 4;
    LinUcbSelector selector(arms, d, {.ridge = 0.7, .policy = {.alpha = 0.4}});
    std::vector<Plain> plain(arms, Plain{0.7, {}, {}});
    std::vector<Play> open;
    Stream world(1);
    int compared = 0;
    for (int step = 0; step < 300; ++step) {
      const Vector x = draw(d, world);
      Vector scores;
      for (const Plain& arm : plain) scores.push_back(dot(arm.weights(d), x) + 0.4 * arm.width(x));
      std::size_t visited = 0;
      for (std::size_t arm = 0; arm < arms; ++arm) visited += selector.record(arm).visits() > 0;
      const Ticket ticket = selector.select(x);
      if (visited == arms) {
        const auto best =
            static_cast<std::size_t>(std::ranges::max_element(scores) - scores.begin());
        std::ranges::sort(scores);
        // No score is so near to the highest that rounding may decide.
        REQUIRE(scores[arms - 1] - scores[arms - 2] > 1e-9);
        CHECK(ticket.arm == best);
        ++compared;
      }
      plain[ticket.arm].open.emplace_back(ticket.id, x);
      open.push_back({ticket, x});
      if (open.size() < spread) continue;
      std::swap(open[world() % open.size()], open.back());
      const Play last = open.back();
      open.pop_back();
      plain[last.ticket.arm].close(last.ticket.id);
      if (world() % 8 == 0) {
        selector.expire(last.ticket);
      } else {
        const double reward = payout(last, world);
        selector.update(last.ticket, reward);
        plain[last.ticket.arm].received.emplace_back(last.context, reward);
      }
      const Vector weights = selector.weights(last.ticket.arm);
      const Vector expected = plain[last.ticket.arm].weights(d);
      for (std::size_t i = 0; i < d; ++i) CHECK(std::abs(weights[i] - expected[i]) < 1e-12);
    }
    CHECK(compared > 280);
  }
}

TEST_CASE(
    "with the context 1 alone the weight is sum / (ridge + n), the width 1 / sqrt(ridge + n)") {
  const Vector one{1};
  LinUcbSelector selector(3, 1, {.ridge = 2, .policy = {.alpha = 0.5}});
  Vector sums(3), plays(3);
  for (int i = 0; i < 200; ++i) {
    const Ticket ticket = selector.select(one);
    if (i >= 3) {
      const auto score = [&](std::size_t arm) {
        return sums[arm] / (2 + plays[arm]) + 0.5 / std::sqrt(2 + plays[arm]);
      };
      for (std::size_t arm = 0; arm < 3; ++arm) CHECK(score(arm) <= score(ticket.arm) + 1e-12);
    }
    const double reward = std::fmod(0.618 * static_cast<double>(ticket.arm + 1) + 0.377 * i, 1.0);
    selector.update(ticket, reward);
    sums[ticket.arm] += reward;
    ++plays[ticket.arm];
    CHECK(std::abs(selector.weights(ticket.arm)[0] - sums[ticket.arm] / (2 + plays[ticket.arm])) <
          1e-14);
  }
}

TEST_CASE("linear Thompson sampling chooses with the probability that one draw beats the other") {
  const std::size_t d = 3;
  const double sd = 0.3;
  LinThompsonSelector selector(2, d, {.ridge = 0.5, .policy = {.noise_sd = sd}});
  std::vector<Plain> plain(2, Plain{0.5, {}, {}});
  Stream world(3);
  for (int i = 0; i < 12; ++i) {
    const Vector x = draw(d, world);
    const Ticket ticket = selector.select(x);
    const double reward = 0.3 * x[ticket.arm] + 0.1 * world.uniform();
    selector.update(ticket, reward);
    plain[ticket.arm].received.emplace_back(x, reward);
  }
  for (int context = 0; context < 3; ++context) {
    const Vector x = draw(d, world);
    const double apart = dot(plain[0].weights(d), x) - dot(plain[1].weights(d), x);
    const double spread = sd * std::hypot(plain[0].width(x), plain[1].width(x));
    const double expected = boost::math::cdf(boost::math::normal(), apart / spread);
    REQUIRE(expected > 0.02);
    REQUIRE(expected < 0.98);
    const int draws = 40000;
    int first = 0;
    for (int i = 0; i < draws; ++i) {
      const Ticket ticket = selector.select(x);
      first += ticket.arm == 0;
      selector.expire(ticket);
    }
    const double sigmas = (first - draws * expected) / std::sqrt(draws * expected * (1 - expected));
    CHECK(std::abs(sigmas) <= 5);
  }
}

TEST_CASE("if the arms are renamed, the choices of LinUCB are renamed") {
  const auto choices = [](std::uint64_t seed, const std::vector<std::size_t>& names) {
    LinUcbSelector selector(4, 3, {.stream = Stream(seed)});
    Stream world(2);
    const Vector first = draw(3, world);
    std::vector<std::size_t> arms;
    for (int i = 0; i < 200; ++i) {
      // While the arms are tried, in an order that the seed gives, all see the same.
      const Vector x = i < 4 ? first : draw(3, world);
      const Ticket ticket = selector.select(x);
      const std::size_t name = names[ticket.arm];
      if (i >= 4) arms.push_back(name);
      selector.update(ticket,
                      x[name % 3] + 0.1 * static_cast<double>(name) + 0.01 * (i < 4 ? 0 : i % 7));
    }
    return arms;
  };
  CHECK(choices(1, {0, 1, 2, 3}) == choices(2, {2, 0, 3, 1}));
}

TEST_CASE_TEMPLATE("contexts in another unit, with the ridge in its square, change nothing", S,
                   LinUcbSelector, LinThompsonSelector) {
  // A power of two: every product is exact, so is the law.
  const auto plain = tickets(S(3, 4, {.ridge = 0.75}), 1, 1);
  CHECK(plain == tickets(S(3, 4, {.ridge = 64 * 0.75}), 8, 1));
  CHECK(plain != tickets(S(3, 4, {.ridge = 0.75}), 8, 1));
}

TEST_CASE_TEMPLATE("rewards in another unit, with the policy in the same, change nothing", S,
                   LinUcbSelector, LinThompsonSelector) {
  using Policy = decltype(typename S::Options().policy);
  const auto plain = tickets(S(3, 4), 1, 1);
  CHECK(plain == tickets(S(3, 4, {.policy = scaled(Policy(), 0x1p-10)}), 1, 0x1p-10));
  CHECK(plain != tickets(S(3, 4, {.policy = scaled(Policy(), 0x1p-10)}), 1, 1));
}

TEST_CASE_TEMPLATE("every arm is tried first, in random order, also before any answer", S,
                   LinUcbSelector, LinThompsonSelector, RestlessSelector) {
  std::set<std::vector<std::size_t>> orders;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    S selector(5, 2, {.stream = Stream(seed)});
    std::vector<std::size_t> order;
    for (int i = 0; i < 5; ++i) order.push_back(selector.select(Vector{1, 2}).arm);
    CHECK(std::set(order.begin(), order.end()).size() == 5);
    orders.insert(order);
  }
  CHECK(orders.size() > 10);
}

TEST_CASE("ties are broken evenly") {
  Vector first(4), second(4);
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    LinUcbSelector selector(4, 1, {.stream = Stream(seed)});
    ++first[selector.select(Vector{1}).arm];
    // A context of nothing scores 0 with every arm that was visited.
    for (int i = 0; i < 3; ++i) selector.select(Vector{1});
    ++second[selector.select(Vector{0}).arm];
  }
  for (const Vector& times : {first, second})
    for (const double each : times)
      CHECK(std::abs(each - 1000) / std::sqrt(4000 * 0.25 * 0.75) <= 5);
}

TEST_CASE("plays that wait for their reward make a batch spread over the arms") {
  LinUcbSelector selector(4, 2);
  std::vector<int> plays(4);
  for (int i = 0; i < 40; ++i) ++plays[selector.select(Vector{1, -0.5}).arm];
  CHECK(plays == std::vector<int>(4, 10));
}

TEST_CASE("an open ticket narrows the score of its arm, in the direction of its context alone") {
  LinUcbSelector selector(2, 2, {.policy = {.alpha = 1}});
  const Vector along{1, 0}, across{0, 1};
  for (int i = 0; i < 2; ++i) {
    const Ticket ticket = selector.select(along);
    selector.update(ticket, ticket.arm == 0 ? 0.7 : 0.5);
  }
  // Weights (.35, 0) and (.25, 0); widths of `along` sqrt(1 / 2) = .707 and the same.
  CHECK(selector.select(along).arm == 0);
  // .35 + sqrt(1 / 3) = .927 against .25 + .707 = .957.
  CHECK(selector.select(along).arm == 1);
  // .927 against .25 + sqrt(1 / 3) = .827.
  const Ticket third = selector.select(along);
  CHECK(third.arm == 0);
  // .35 + sqrt(1 / 4) = .85 against .827.
  CHECK(selector.select(along).arm == 0);
  // .35 + sqrt(1 / 5) = .797 against .827.
  CHECK(selector.select(along).arm == 1);
  CHECK(std::abs(selector.weights(0)[0] - 0.35) < 1e-15);
  CHECK(selector.record(0).pending == 3);
  // Across, both are as wide as at the start: a tie, which the first to be played loses.
  const std::size_t one = selector.select(across).arm;
  CHECK(selector.select(across).arm == 1 - one);
  // Without one of the five plays of arm 0, .85, .797 and .758 are above .25 + sqrt(1 / 4) = .75,
  // .35 + sqrt(1 / 7) = .728 is below.
  selector.expire(third);
  for (const std::size_t arm : {0U, 0U, 0U, 1U}) CHECK(selector.select(along).arm == arm);
}

TEST_CASE("rewards may come late and in any order") {
  const auto weights_after = [](const std::vector<std::size_t>& order) {
    LinUcbSelector selector(2, 3, {.stream = Stream(1)});
    Stream world(2);
    std::vector<Play> plays;
    for (int i = 0; i < 8; ++i) {
      const Vector x = draw(3, world);
      plays.push_back({selector.select(x), x});
    }
    for (const std::size_t i : order) selector.update(plays[i].ticket, plays[i].context[0]);
    Vector weights = selector.weights(0);
    for (const double each : selector.weights(1)) weights.push_back(each);
    return weights;
  };
  const Vector a = weights_after({0, 1, 2, 3, 4, 5, 6, 7});
  const Vector b = weights_after({5, 2, 7, 0, 4, 6, 1, 3});
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) < 1e-14);
}

TEST_CASE_TEMPLATE("an expired play leaves no trace but the numbers drawn", S, LinUcbSelector,
                   LinThompsonSelector, RestlessSelector) {
  S selector(3, 4);
  Stream world(5);
  std::vector<Play> open;
  play(selector, world, open, 50, 6);
  S other = selector;
  std::vector<Ticket> needless;
  for (int i = 0; i < 9; ++i) needless.push_back(other.select(draw(4, world, 1e3)));
  for (const std::size_t i : {3U, 0U, 8U, 5U, 1U, 2U, 7U, 6U, 4U}) other.expire(needless[i]);
  auto state = other.save();
  state["stream"] = selector.save()["stream"];
  state["next_id"] = selector.save()["next_id"];
  CHECK(state == selector.save());
  // Nor in what is not saved: only the numbers of the tickets differ from now on.
  state = other.save();
  state["stream"] = selector.save()["stream"];
  selector.load(state);
  S fresh(3, 4);
  fresh.load(state);
  Stream same_world = world;
  auto same_open = open;
  CHECK(play(selector, world, open, 100, 6) == play(fresh, same_world, same_open, 100, 6));
}

TEST_CASE_TEMPLATE("a selector that was saved and loaded goes on bit for bit", S, LinUcbSelector,
                   LinThompsonSelector, RestlessSelector) {
  for (const std::size_t spread : {1U, 9U}) {
    typename S::Options options;
    options.ridge = 0.3;
    options.stream = Stream(0xFEDCBA9876543210).fold(0xFFFFFFFFFFFFFFFF);
    S undisturbed(4, 5, options);
    Stream world(9);
    std::vector<Play> open;
    play(undisturbed, world, open, 101, spread);
    undisturbed.retire(1);
    undisturbed.add_arm();

    options.stream = Stream(1);
    S resumed(4, 5, options);
    const auto state = undisturbed.save();
    resumed.load(nlohmann::json::parse(state.dump()));
    CHECK(resumed.save().dump() == state.dump());
    for (std::size_t arm = 0; arm < 5; ++arm) {
      CHECK(resumed.weights(arm) == undisturbed.weights(arm));
      CHECK(resumed.record(arm).pending == undisturbed.record(arm).pending);
      CHECK(resumed.active(arm) == undisturbed.active(arm));
    }
    Stream same_world = world;
    auto same_open = open;
    CHECK(play(undisturbed, world, open, 200, spread) ==
          play(resumed, same_world, same_open, 200, spread));
    CHECK(resumed.save().dump() == undisturbed.save().dump());
  }
}

TEST_CASE("a copy goes on as the original would") {
  LinThompsonSelector original(3, 2);
  Stream world(4);
  std::vector<Play> open;
  play(original, world, open, 40, 5);
  LinThompsonSelector copy = original;
  Stream same_world = world;
  auto same_open = open;
  CHECK(play(original, world, open, 100, 5) == play(copy, same_world, same_open, 100, 5));
}

TEST_CASE("contexts, rewards and ridges at the limits of their ranges stay finite and are loaded") {
  for (const double ridge : {1e-50, 1e50}) {
    LinUcbSelector selector(1, 2, {.ridge = ridge});
    for (const double scale : {1e50, 1e-50, 0.0, 1e50, 1.0})
      for (int i = 0; i < 10; ++i)
        selector.update(selector.select(Vector{scale, -scale / (i + 1)}),
                        i % 2 == 0 ? 1e50 : -1e50);
    for (int i = 0; i < 50; ++i) selector.update(selector.select(Vector{1e50, 1e50}), 1e50);
    for (const double weight : selector.weights(0)) CHECK(std::isfinite(weight));
    LinUcbSelector other(1, 2, {.ridge = ridge});
    other.load(selector.save());
    CHECK(other.save() == selector.save());
  }
  // The sum of 20 rewards of 1e50 is rounded to more than 2e51.
  LinUcbSelector selector(1, 1), other(1, 1);
  for (int i = 0; i < 20; ++i) selector.update(selector.select(Vector{1}), 1e50);
  other.load(selector.save());
  CHECK(other.save() == selector.save());
}

TEST_CASE("a ticket counts once: used, expired, forged and foreign tickets are refused") {
  LinUcbSelector selector(3, 2);
  const Vector x{1, 2};
  const Ticket first = selector.select(x);
  const Ticket second = selector.select(x);
  selector.update(first, 1);
  selector.expire(second);
  const Ticket third = selector.select(x);
  const auto before = selector.save();
  CHECK_THROWS_WITH_AS(selector.update(first, 1),
                       doctest::Contains("LinearSelector::update: ticket 0 of arm"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(selector.expire(first),
                       doctest::Contains("LinearSelector::expire: ticket 0 of arm"),
                       std::invalid_argument);
  CHECK_THROWS_AS(selector.update(second, 1), std::invalid_argument);
  CHECK_THROWS_AS(selector.update({99, 0}, 1), std::invalid_argument);
  CHECK_THROWS_AS(selector.update({third.id, (third.arm + 1) % 3}, 1), std::invalid_argument);
  CHECK_THROWS_AS(selector.expire({third.id, third.arm, 0.5}), std::invalid_argument);
  CHECK(selector.save() == before);
  selector.update(third, 0.5);
  CHECK(selector.record(third.arm).sum == (third.arm == first.arm ? 1.5 : 0.5));
}

TEST_CASE("contexts and rewards that are no numbers or out of range are refused, change nothing") {
  LinThompsonSelector selector(2, 3);
  const Ticket ticket = selector.select(Vector{1, 2, 3});
  const auto before = selector.save();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), infinity, -infinity, 1.1e50, -1e60}) {
    CHECK_THROWS_WITH_AS(
        selector.select(Vector{1, 2, bad}),
        doctest::Contains("LinearSelector::select: context[2] must be in [-1e+50, 1e+50], got "),
        std::invalid_argument);
    CHECK_THROWS_WITH_AS(
        selector.update(ticket, bad),
        doctest::Contains("LinearSelector::update: reward must be in [-1e+50, 1e+50], got "),
        std::invalid_argument);
  }
  for (const std::size_t size : {0U, 2U, 4U})
    CHECK_THROWS_WITH_AS(
        selector.select(Vector(size)),
        doctest::Contains("LinearSelector::select: context must have 3 numbers, got "),
        std::invalid_argument);
  CHECK(selector.save() == before);
  selector.update(ticket, 1);
}

TEST_CASE("wrong arguments and settings of a linear selector are refused") {
  CHECK_THROWS_WITH_AS(LinUcbSelector(0, 2), "LinearSelector: arms must be at least 1, got 0",
                       std::invalid_argument);
  for (const std::size_t bad : {std::size_t{0}, std::numeric_limits<std::size_t>::max()})
    CHECK_THROWS_WITH_AS(LinUcbSelector(2, bad),
                         doctest::Contains("LinearSelector: dimension must be in [1, 65536], got "),
                         std::invalid_argument);
  CHECK_THROWS_WITH_AS(LinUcbSelector(2, 1).record(2),
                       "LinearSelector::record: arm must be below 2, got 2", std::invalid_argument);
  CHECK_THROWS_WITH_AS(LinUcbSelector(2, 1).weights(2),
                       "LinearSelector::weights: arm must be below 2, got 2",
                       std::invalid_argument);
  for (const double bad : {-1.0, 1e51, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS_WITH_AS(LinUcbSelector(2, 1, {.ridge = bad}),
                         doctest::Contains("LinearSelector: ridge must be in [1e-50, 1e+50], got "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS(LinUcbSelector(2, 1, {.policy = {.alpha = bad}}),
                         doctest::Contains("LinUcb: alpha must be in [0, 1e+50], got "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS(LinThompsonSelector(2, 1, {.policy = {.noise_sd = bad}}),
                         doctest::Contains("LinThompson: noise_sd must be in (0, 1e+50], got "),
                         std::invalid_argument);
  }
  CHECK_THROWS_AS(LinUcbSelector(2, 1, {.ridge = 0}), std::invalid_argument);
  CHECK_THROWS_AS(LinThompsonSelector(2, 1, {.policy = {.noise_sd = 0}}), std::invalid_argument);
}

TEST_CASE("the state of another selector is refused") {
  const auto state = LinUcbSelector(3, 2).save();
  CHECK_THROWS_WITH_AS(LinUcbSelector(2, 2).load(state), "LinearSelector.arms must be 2, got 3",
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(LinUcbSelector(3, 1).load(state),
                       "LinearSelector.dimension must be 1, got 2", std::runtime_error);
  CHECK_THROWS_WITH_AS(LinUcbSelector(3, 2, {.ridge = 2}).load(state),
                       "LinearSelector.ridge must be 2.0, got 1.0", std::runtime_error);
  CHECK_THROWS_WITH_AS(LinThompsonSelector(3, 2).load(state),
                       "LinearSelector.policy must be \"lin_thompson\", got \"lin_ucb\"",
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(LinUcbSelector(3, 2, {.policy = {.alpha = 2}}).load(state),
                       doctest::Contains("LinearSelector.settings must be"), std::runtime_error);
}

TEST_CASE("a corrupted state is refused and the selector stays as it was") {
  LinUcbSelector selector(3, 2);
  Stream world(1);
  std::vector<Play> open;
  play(selector, world, open, 30, 4);
  const auto good = selector.save();
  REQUIRE(good["open"].size() == 3);
  LinUcbSelector other(3, 2);
  const auto before = other.save();
  const auto refuses = [&](const char* path, const nlohmann::json& value) {
    auto bad = good;
    bad[nlohmann::json::json_pointer(path)] = value;
    CAPTURE(path);
    CAPTURE(value.dump());
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
    CHECK(other.save() == before);
  };
  refuses("/version", 0);
  refuses("/stream", {1, 2});
  refuses("/stream/1", -1);
  refuses("/next_id", 0);
  refuses("/next_id", 0.5);
  refuses("/arms", 2);
  refuses("/all_arms", 2);
  refuses("/all_arms", 4);
  refuses("/open", "none");
  refuses("/open", nlohmann::json::array());
  refuses("/open/0/1", 3);
  refuses("/open/1", good["open"][0]);
  refuses("/contexts", nlohmann::json::array());
  refuses("/contexts", nullptr);
  refuses("/contexts/6", 0.5);
  refuses("/contexts/0", 1e51);
  refuses("/contexts/0", nullptr);
  refuses("/active", {0, 3});
  refuses("/active", {1, 0});
  refuses("/active", {1, 1});
  refuses("/rewards/records/0/0", -1);
  refuses("/rewards/records/0/1", 1e60);
  refuses("/rewards/records/3", {0, 0, 0});
  refuses("/rewards/records", nlohmann::json::array());
  refuses("/models", nlohmann::json::array());
  refuses("/models/3", good["models"][0]);
  refuses("/models/0", {1, 0, 0, 1});
  refuses("/models/0/5", 0);
  // The diagonal of the factor: it only grows from sqrt(ridge).
  for (const char* path : {"/models/0/0", "/models/0/3"})
    for (const double bad : {0.0, -1.0, 0.999, 1e61}) refuses(path, bad);
  for (const char* path : {"/models/0/1", "/models/0/2", "/models/0/4"})
    for (const nlohmann::json& bad : {nlohmann::json(), nlohmann::json("1"), nlohmann::json(-1e61)})
      refuses(path, bad);
  for (const auto& [key, value] : good.items()) {
    auto bad = good;
    bad.erase(key);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
  }
  for (const nlohmann::json& bad : {nlohmann::json(), nlohmann::json(3), nlohmann::json::array()})
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
  CHECK(other.save() == before);
  other.load(good);
  CHECK(other.save() == good);
}

TEST_CASE("a model whose weights overflow is refused") {
  LinUcbSelector selector(1, 8);
  const auto good = selector.save();
  auto bad = good;
  auto& model = bad["models"][0];
  for (std::size_t i = 0, diagonal = 0, length = 8; i < model.size(); ++i) {
    if (i == diagonal)
      diagonal += 1 + length--;
    else
      model[i] = 1e60;
  }
  CHECK_THROWS_WITH_AS(selector.load(bad),
                       "LinearSelector.models[0] has weights that are not finite",
                       std::runtime_error);
  CHECK(selector.save() == good);
}

TEST_CASE("an arm that is added is tried next, one that is retired never again") {
  LinUcbSelector selector(2, 1);
  const Vector x{1};
  for (int i = 0; i < 10; ++i) selector.update(selector.select(x), 1);
  CHECK(selector.add_arm() == 2);
  CHECK(selector.arms() == 3);
  const Ticket added = selector.select(x);
  CHECK(added.arm == 2);
  selector.retire(2);
  CHECK_FALSE(selector.active(2));
  selector.update(added, 100);
  CHECK(selector.weights(2)[0] == doctest::Approx(50));
  for (int i = 0; i < 10; ++i) CHECK(selector.select(x).arm != 2);
  CHECK_THROWS_WITH_AS(selector.retire(2), doctest::Contains("LinearSelector::retire: arm 2"),
                       std::invalid_argument);
  CHECK_THROWS_AS(selector.retire(3), std::invalid_argument);
  selector.retire(0);
  selector.retire(1);
  CHECK_THROWS_WITH_AS(selector.select(x), "LinearSelector::select: all arms are retired",
                       std::invalid_argument);
  CHECK(selector.add_arm() == 3);
  CHECK(selector.select(x).arm == 3);
}

TEST_CASE("where the best arm depends on the context, the regret is far below that of chance") {
  const std::size_t d = 4, arms = 5;
  const auto regret = [&](auto selector, std::size_t delay) {
    Stream world(6);
    std::vector<Vector> weights;
    for (std::size_t arm = 0; arm < arms; ++arm) weights.push_back(draw(d, world));
    std::vector<std::pair<Ticket, double>> open;
    double lost = 0;
    for (int i = 0; i < 3000; ++i) {
      const Vector x = draw(d, world);
      double best = -1e9;
      for (const Vector& each : weights) best = std::max(best, dot(each, x));
      const Ticket ticket = selector.select(x);
      const double mean = dot(weights[ticket.arm], x);
      lost += best - mean;
      open.emplace_back(ticket, mean + 0.5 * (2 * world.uniform() - 1));
      if (open.size() <= delay) continue;
      selector.update(open.front().first, open.front().second);
      open.erase(open.begin());
    }
    return lost;
  };
  const double chance = regret(Chance(arms, d), 0);
  for (const std::size_t delay : {0U, 20U}) {
    CHECK(regret(LinUcbSelector(arms, d), delay) < 0.1 * chance);
    CHECK(regret(LinThompsonSelector(arms, d), delay) < 0.1 * chance);
  }
}

TEST_CASE("golden choices of the linear selectors: the same on every machine") {
  const auto golden = [](auto selector) {
    Stream world(1);
    std::vector<Play> open;
    std::string arms;
    for (const std::size_t arm : play(selector, world, open, 32, 3)) arms += std::to_string(arm);
    return arms;
  };
  CHECK(golden(LinUcbSelector(3, 4, {.stream = Stream(42)})) == "12011200022011121212101010121100");
  CHECK(golden(LinThompsonSelector(3, 4, {.stream = Stream(42)})) ==
        "12000122011000121222102010121102");
}
