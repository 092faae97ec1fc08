// The regret of the selectors with a linear model an arm, where rewards are linear in a context,
// and what one without contexts loses there. Needs no LibTorch.
//
// 10 arms, contexts of 8 numbers: a constant 1 and seven normal ones. Each run draws the arms'
// weights from N(0, 1 / 8), the noise has sd .5. Regret: sum of the gaps between the best arm for
// the context and the arm played.
#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <droppeft/bandit/linear.hpp>
#include <droppeft/bandit/thompson.hpp>
#include <string>
#include <vector>

namespace {

using namespace droppeft;

constexpr std::size_t arms = 10, dimension = 8;
constexpr double noise = 0.5;

class World {
 public:
  explicit World(Stream stream) : stream_(stream), weights_(arms), context_(dimension, 1) {
    for (auto& weights : weights_)
      for (std::size_t i = 0; i < dimension; ++i)
        weights.push_back(normal() / std::sqrt(static_cast<double>(dimension)));
  }

  const std::vector<double>& next_context() {
    for (std::size_t i = 1; i < dimension; ++i) context_[i] = normal();
    best_ = mean(0);
    for (std::size_t arm = 1; arm < arms; ++arm) best_ = std::max(best_, mean(arm));
    return context_;
  }
  double gap(std::size_t arm) const { return best_ - mean(arm); }
  double reward(std::size_t arm) { return mean(arm) + noise * normal(); }

 private:
  double normal() { return boost::random::normal_distribution<double>()(stream_); }
  double mean(std::size_t arm) const {
    double sum = 0;
    for (std::size_t i = 0; i < dimension; ++i) sum += weights_[arm][i] * context_[i];
    return sum;
  }

  Stream stream_;
  std::vector<std::vector<double>> weights_;
  std::vector<double> context_;
  double best_ = 0;
};

/// make(stream) is a new selector; prints the regret at a tenth of the horizon and at the horizon.
template <class Make>
void study(const char* name, const Make& make, int horizon, int runs) {
  double sums[2] = {}, squares[2] = {}, seconds = 0;
  for (int run = 0; run < runs; ++run) {
    World world(Stream(0).fold(static_cast<std::uint64_t>(run)));
    auto selector = make(Stream(1).fold(static_cast<std::uint64_t>(run)));
    double regret = 0;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 1; t <= horizon; ++t) {
      const auto& context = world.next_context();
      Ticket ticket;
      if constexpr (ContextualSelector<decltype(selector)>)
        ticket = selector.select(context);
      else
        ticket = selector.select();
      regret += world.gap(ticket.arm);
      selector.update(ticket, world.reward(ticket.arm));
      for (const int place : {0, 1})
        if (t == (place == 0 ? horizon / 10 : horizon)) {
          sums[place] += regret;
          squares[place] += regret * regret;
        }
    }
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::printf("%-36s", name);
  for (const int place : {0, 1}) {
    const double mean = sums[place] / runs;
    const double variance = (squares[place] / runs - mean * mean) * runs / (runs - 1);
    std::printf(" %9.1f +- %6.1f", mean, 1.96 * std::sqrt(variance / runs));
  }
  std::printf(" %7.0f\n", 1e9 * seconds / runs / horizon);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  const int horizon = count > 1 ? std::atoi(arguments[1]) : 10000;
  const int runs = count > 2 ? std::atoi(arguments[2]) : 200;
  if (horizon < 10 || runs < 2) {
    std::fprintf(stderr, "usage: contextual [HORIZON >= 10] [RUNS >= 2]\n");
    return 2;
  }
  std::printf(
      "%d runs; regret after %d and %d plays, 95 %% interval; ns a play, the world included\n",
      runs, horizon / 10, horizon);
  for (const double alpha : {1.0, 0.5, 0.25})
    study(("LinUCB, alpha " + std::to_string(alpha).substr(0, 4)).c_str(),
          [&](Stream stream) {
            return LinUcbSelector(arms, dimension, {.stream = stream, .policy = {.alpha = alpha}});
          },
          horizon, runs);
  study(
      "linear Thompson sampling, v = sd",
      [&](Stream stream) {
        return LinThompsonSelector(arms, dimension,
                                   {.stream = stream, .policy = {.noise_sd = noise}});
      },
      horizon, runs);
  study(
      "Gaussian Thompson, no contexts",
      [&](Stream stream) {
        return ThompsonSelector(
            arms, {.stream = stream, .policy = {.prior_mean = 0, .prior_sd = 1, .noise_sd = 1.1}});
      },
      horizon, runs);
  study(
      "any arm",
      [&](Stream stream) {
        return ThompsonSelector(
            arms, {.stream = stream, .policy = {.prior_mean = 0, .prior_sd = 1, .noise_sd = 1e9}});
      },
      horizon, runs);
}
