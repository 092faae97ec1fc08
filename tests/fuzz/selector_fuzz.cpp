// Any sequence of calls leaves a selector with as many open tickets as it says, and going on bit
// for bit from its saved state; any JSON is taken or refused whole. How to run it: README.md.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "droppeft/bandit/exp3.hpp"
#include "droppeft/bandit/kl_ucb.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb_v.hpp"

namespace {

using namespace droppeft;

void require_that(bool holds) {
  if (!holds) std::abort();
}

/// The bytes of the fuzzer, one after the other, and zeros when they are used up.
struct Bytes {
  const std::uint8_t* data;
  std::size_t size;

  std::uint8_t next() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
};

template <class S>
void call(Bytes bytes, typename S::Options options) {
  S selector(3, options);
  std::vector<Ticket> open;
  while (bytes.size > 0) {
    const std::uint8_t what = bytes.next();
    const std::uint8_t which = bytes.next();
    const auto place = open.empty() ? 0 : which % open.size();
    try {
      if (what % 8 < 3) {
        open.push_back(selector.select());
        require_that(selector.active(open.back().arm));
      } else if (what % 8 < 5 && !open.empty()) {
        selector.update(open[place], bytes.next() / 255.0);
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(place));
      } else if (what % 8 == 5 && !open.empty()) {
        selector.expire(open[place]);
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(place));
      } else if (what % 8 == 6) {
        if (which % 2 == 0 && selector.arms() < 20)
          selector.add_arm();
        else
          selector.retire(which / 2 % selector.arms());
      } else {
        S loaded(3, options);
        loaded.load(nlohmann::json::parse(selector.save().dump()));
        require_that(loaded.save() == selector.save());
        selector = loaded;
      }
    } catch (const std::invalid_argument&) {
    }
    std::uint64_t pending = 0;
    for (std::size_t arm = 0; arm < selector.arms(); ++arm) {
      const ArmRecord record = selector.record(arm);
      pending += record.pending;
      require_that(record.plays >= 0 && record.mean() == record.mean() && record.variance() >= 0);
    }
    require_that(pending == open.size());
  }
}

template <class S>
void load(const nlohmann::json& state, typename S::Options options) {
  S selector(2, options);
  const auto before = selector.save();
  try {
    selector.load(state);
  } catch (const std::runtime_error&) {
    require_that(selector.save() == before);
    return;
  }
  require_that(selector.save().dump() == nlohmann::json(state).dump() ||
               state.size() > before.size());
  for (int i = 0; i < 5; ++i) try {
      selector.update(selector.select(), 0.5);
    } catch (const std::invalid_argument&) {
      return;  // all arms were retired
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto state = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const std::size_t window = data[0] % 3 == 1 ? 5 : 0;
  const double discount = data[0] % 3 == 2 ? 0.9 : 1;
  const auto play = [&]<class S>(typename S::Options options) {
    options.window = window;
    options.discount = discount;
    if (data[0] & 64) options.range = RewardRange::unknown();
    if (state.is_discarded())
      call<S>({data + 1, size - 1}, options);
    else
      load<S>(state, options);
  };
  switch (data[0] / 3 % 4) {
    case 0:
      play.operator()<UcbVSelector>({});
      break;
    case 1:
      play.operator()<KlUcbSelector>({});
      break;
    case 2:
      play.operator()<BetaThompsonSelector>({});
      break;
    default:
      play.operator()<Exp3Selector>({});
  }
  return 0;
}
