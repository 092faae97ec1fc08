// Any sequence of calls leaves a selector with as many open tickets as it says, with finite
// numbers, and going on bit for bit from its saved state; a call that is refused changes nothing;
// any JSON, and any state of which a part was changed, is taken or refused whole, and what was
// taken can be played on. How to run it: README.md.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "droppeft/bandit/exp3.hpp"
#include "droppeft/bandit/kl_ucb.hpp"
#include "droppeft/bandit/linear.hpp"
#include "droppeft/bandit/ratio.hpp"
#include "droppeft/bandit/softmax.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb_tuned.hpp"
#include "droppeft/bandit/ucb_v.hpp"
#include "fuzz.hpp"

namespace {

using namespace droppeft;

constexpr std::size_t dimension = 6;

template <class S>
Ticket select(S& selector, Bytes& bytes) {
  if constexpr (ContextualSelector<S>) {
    std::vector<double> context;
    for (std::size_t i = 0; i < dimension; ++i) context.push_back(number(bytes));
    return selector.select(context);
  } else {
    return selector.select();
  }
}

template <class S>
constexpr bool takes_costs = requires(S selector) {
  selector.update(Ticket(), 1.0, 1.0);
};

template <class S>
void update(S& selector, const Ticket& ticket, Bytes& bytes) {
  const double reward = number(bytes);
  if constexpr (takes_costs<S>)
    selector.update(ticket, reward, number(bytes));
  else
    selector.update(ticket, reward);
}

void check(const ArmRecord& record) {
  require_that(record.plays >= 0 && std::isfinite(record.mean()) && record.variance() >= 0);
}

void check(const RatioRecord& record) {
  require_that(record.plays >= 0 && std::isfinite(record.ratio()));
  check(record.against(record.ratio()));
}

template <class S>
void check(const S& selector, std::size_t open) {
  std::uint64_t pending = 0;
  for (std::size_t arm = 0; arm < selector.arms(); ++arm) {
    pending += selector.record(arm).pending;
    check(selector.record(arm));
    if constexpr (ContextualSelector<S>)
      for (const double weight : selector.weights(arm)) require_that(std::isfinite(weight));
  }
  if constexpr (takes_costs<S>) require_that(std::isfinite(selector.rate()));
  require_that(pending == open);
}

/// Any call but loading.
template <class S>
void call(S& selector, std::vector<Ticket>& open, Bytes& bytes) {
  const std::uint8_t what = bytes.next() % 7, which = bytes.next();
  const auto place =
      open.empty() ? open.end() : open.begin() + which % static_cast<int>(open.size());
  const S before(selector);
  try {
    if (what < 3) {
      const Ticket ticket = select(selector, bytes);
      require_that(selector.active(ticket.arm) && ticket.probability >= 0 &&
                   ticket.probability <= 1);
      open.push_back(ticket);
    } else if (what == 6) {
      if (which % 2 == 0 && selector.arms() < 6)
        selector.add_arm();
      else
        selector.retire(which / 2 % selector.arms());
    } else if (place != open.end()) {
      if (what == 5)
        selector.expire(*place);
      else
        update(selector, *place, bytes);
      open.erase(place);
    }
  } catch (const std::invalid_argument&) {
    require_that(selector.save() == before.save());
  }
  check(selector, open.size());
}

/// Loads a state into a selector, which takes it, and can be played on then, or stays as it was.
template <class S>
void load(S selector, const nlohmann::json& state, Bytes bytes) {
  const auto before = selector.save();
  try {
    selector.load(state);
  } catch (const std::runtime_error&) {
    require_that(selector.save() == before);
    return;
  }
  const auto loaded = selector.save();
  std::vector<Ticket> open;
  const auto& chooser = loaded.contains("chooser") ? loaded["chooser"] : loaded;
  for (const auto& ticket : chooser["open"]) open.push_back({ticket[0], ticket[1], ticket[2]});
  check(selector, open.size());
  S again(selector);
  again.load(loaded);
  require_that(again.save() == loaded);
  for (int i = 0; i < 10; ++i) call(selector, open, bytes);
}

template <class S>
void play(const S& made, Bytes bytes) {
  S selector(made);
  std::vector<Ticket> open;
  while (bytes.size > 0) {
    if (bytes.next() % 8 > 0) {
      call(selector, open, bytes);
      continue;
    }
    nlohmann::json state = selector.save();
    S loaded(made);
    loaded.load(nlohmann::json::parse(state.dump()));
    require_that(loaded.save() == state);
    selector = loaded;
    corrupt(state, bytes);
    load(bytes.next() % 2 ? selector : made, state, bytes);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  const auto state = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const std::uint8_t settings = data[1];
  const auto fuzz = [&](const auto& selector) {
    if (state.is_discarded())
      play(selector, {data + 2, size - 2});
    else
      load(selector, state, {nullptr, 0});
  };
  const auto with_options = [&]<class S>() {
    typename S::Options options;
    options.window = settings % 3 == 1 ? 5 : 0;
    options.discount = settings % 3 == 2 ? 0.9 : 1;
    if constexpr (takes_costs<S>) {
      if (settings & 64) options.gains = {0, 1};
      if (settings & 128) options.costs = {1e-3, 1};
    } else if (settings & 64) {
      options.range = RewardRange::unknown();
    }
    fuzz(S(3, options));
  };
  const double ridge = settings % 3 == 0 ? 1 : settings % 3 == 1 ? 1e-50 : 1e50;
  switch (data[0] % 9) {
    case 0:
      with_options.operator()<UcbVSelector>();
      break;
    case 1:
      with_options.operator()<KlUcbSelector>();
      break;
    case 2:
      with_options.operator()<BetaThompsonSelector>();
      break;
    case 3:
      with_options.operator()<Exp3Selector>();
      break;
    case 4:
      with_options.operator()<RatioSelector<UcbTuned>>();
      break;
    case 5:
      with_options.operator()<RatioSelector<KlUcb>>();
      break;
    case 6:
      with_options.operator()<RatioSelector<Softmax>>();
      break;
    case 7:
      fuzz(LinUcbSelector(3, dimension, {.ridge = ridge}));
      break;
    default:
      fuzz(LinThompsonSelector(3, dimension, {.ridge = ridge}));
  }
  return 0;
}
