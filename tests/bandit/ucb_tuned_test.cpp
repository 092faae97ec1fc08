#include "droppeft/bandit/ucb_tuned.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "droppeft/bandit/ucb.hpp"
#include "laws.hpp"

using namespace droppeft;

TEST_CASE("UCB-tuned plays the arm with the highest mean + sqrt(min(1/4, V + ...) ln t / n)") {
  laws::plays_the_highest(
      UcbTunedSelector(4), [](const std::vector<double>& rewards, double t, double) {
        const auto n = static_cast<double>(rewards.size());
        const double width = laws::variance(rewards) + std::sqrt(2 * std::log(t) / n);
        return laws::mean(rewards) + std::sqrt(std::log(t) / n * std::min(0.25, width));
      });
}

TEST_CASE("UCB-tuned obeys the laws of names and ranges") {
  laws::follows_renaming<UcbTunedSelector>();
  laws::follows_the_range<UcbTunedSelector>();
}

TEST_CASE("UCB-tuned loses at most half of what UCB1 loses, as its authors found") {
  CHECK(laws::regret<UcbTunedSelector>({0.9, 0.8}, 10000, 20) <
        laws::regret<UcbSelector>({0.9, 0.8}, 10000, 20) / 2);
}

TEST_CASE("golden choices of UCB-tuned: the same on every machine and standard library") {
  CHECK(laws::golden<UcbTunedSelector>() == "10220002022111221100020102211221");
}
