// Any sequence of calls leaves a configurator with finite estimates, and going on bit for bit from
// its saved state; what it assigns, a device can hold; a call that is refused changes nothing; any
// JSON, and any state of which a part was changed, is taken or refused whole, and what was taken
// can be played on. How to run it: README.md.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "droppeft/bandit/any_selector.hpp"
#include "droppeft/bandit/shared_prior.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/configurator.hpp"
#include "droppeft/pace_configurator.hpp"
#include "fuzz.hpp"

namespace {

using namespace droppeft;

constexpr std::size_t devices = 4;

template <class C>
using Assignments = std::vector<Assignment<typename C::Configuration>>;

template <class C>
void check(const C& configurator) {
  for (const auto& each : configurator.estimates()) {
    require_that(each.plays >= 0 && std::isfinite(each.mean_reward) && each.reward_sd >= 0 &&
                 std::isfinite(each.merit));
    for (const double rate : each.configuration.drop_rates(6)) require_that(rate >= 0 && rate < 1);
  }
  require_that(configurator.best().mean() <= 0.95);
}

/// Any call but loading.
template <class C>
void call(C& configurator, Assignments<C>& open, Bytes& bytes) {
  const std::uint8_t what = bytes.next() % 6, which = bytes.next();
  const C before(configurator);
  try {
    if (what < 2) {
      const DeviceRequest request{which % (devices + 1), which < 64 ? number(bytes) : 0};
      for (const auto& each : configurator.assign(std::vector<DeviceRequest>{request, {0, 0}})) {
        if (each.ticket.id % 2 == 0) require_that(each.configuration.mean() <= 0.95);
        open.push_back(each);
      }
      require_that(open[open.size() - 2].configuration.mean() >= request.least_rate - 1e-9);
    } else if (what == 5) {
      configurator.finish_round();
    } else if (!open.empty()) {
      const auto place = open.begin() + which % static_cast<int>(open.size());
      if (what == 4)
        configurator.expire(*place);
      else
        configurator.report(*place, number(bytes), number(bytes));
      open.erase(place);
    }
  } catch (const std::invalid_argument&) {
    require_that(configurator.save() == before.save());
  }
  check(configurator);
}

void check(const PaceConfigurator& configurator) {
  for (const auto& each : configurator.beliefs())
    require_that(std::isfinite(each.gain) && each.sd > 0 && each.reports >= 0);
}

struct Nothing {};

void call(PaceConfigurator& configurator, Nothing&, Bytes& bytes) {
  const PaceConfigurator before(configurator);
  try {
    const std::vector<RoundCost> costs{{number(bytes), number(bytes), number(bytes)},
                                       {1, number(bytes)}};
    const double rate = configurator.choose(costs);
    require_that(rate >= 0 && rate <= 0.95);
    const std::vector<double> rates{number(bytes), rate}, gains{number(bytes), number(bytes)};
    const PaceConfigurator chosen(configurator);
    try {
      configurator.report(rates, gains);
    } catch (const std::invalid_argument&) {
      require_that(configurator.save() == chosen.save());
    }
  } catch (const std::invalid_argument&) {
  }
  check(configurator);
}

/// Loads a state, which is taken, and can be played on then, or all stays as it was.
template <class C, class Open>
void load(C configurator, const nlohmann::json& state, Bytes bytes, Open open) {
  const auto before = configurator.save();
  try {
    configurator.load(state);
  } catch (const std::runtime_error&) {
    require_that(configurator.save() == before);
    return;
  }
  check(configurator);
  const auto loaded = configurator.save();
  C again(configurator);
  again.load(loaded);
  require_that(again.save() == loaded);
  for (int i = 0; i < 10; ++i) call(configurator, open, bytes);
}

template <class Open, class C>
void fuzz(const C& made, const nlohmann::json& state, Bytes bytes) {
  if (!state.is_discarded()) return load(made, state, {nullptr, 0}, Open());
  C configurator(made);
  Open open;
  while (bytes.size > 0) {
    if (bytes.next() % 8 > 0) {
      call(configurator, open, bytes);
      continue;
    }
    nlohmann::json saved = configurator.save();
    C loaded(made);
    loaded.load(nlohmann::json::parse(saved.dump()));
    require_that(loaded.save() == saved);
    configurator = loaded;
    corrupt(saved, bytes);
    load(bytes.next() % 2 ? configurator : made, saved, bytes, Open());
  }
}

template <class C>
void fuzz_all(const C& made, const nlohmann::json& state, Bytes bytes) {
  fuzz<Assignments<C>>(made, state, bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  const auto state = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Bytes bytes{data + 2, size - 2};
  const std::size_t window = data[1] % 2 ? 5 : 0;
  const SharedPriorSelector<GaussianThompson> shared(
      5, {0, 0, 1, 1}, {.window = window, .policy = {.noise_sd = 0.2}});
  switch (data[0] % 5) {
    case 0:
      fuzz_all(SelectorConfigurator(ThompsonSelector(7, {.window = window}), configurations()),
               state, bytes);
      break;
    case 1:
      fuzz_all(SelectorConfigurator(AnySelector(UcbSelector(5, {.window = window})),
                                    LayerRateSpace(6), {.epsilon = 0.4}),
               state, bytes);
      break;
    case 2:
      fuzz_all(SelectorConfigurator(shared, RateSpace(), {.epsilon = 0.4}, GainPerSecond()), state,
               bytes);
      break;
    case 3:
      fuzz_all(population_configurator({.population = 4, .window = 6}), state, bytes);
      break;
    default:
      fuzz<Nothing>(PaceConfigurator(), state, bytes);
  }
  return 0;
}
