#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace droppeft {

/// Scores of the form mean + sqrt(square / count), at less cost: an arm whose score is surely below
/// the highest one so far gets its mean, which is lower still, without division or root. For the
/// scorer of a policy, one for each choice. Which arm has the highest score, and which share it,
/// does not change.
class UpperBound {
 public:
  double operator()(double mean, double square, double count) {
    if (below(mean, square, count)) return mean;
    const double score = mean + std::sqrt(square / count);
    highest_ = std::max(highest_, score);
    return score;
  }

  /// Whether mean + sqrt(square / count) is below the highest score so far, by more than rounding.
  bool below(double mean, double square, double count) const {
    const double apart = (highest_ - mean) - 1e-12 * (std::abs(highest_) + std::abs(mean));
    return apart > 0 && square < apart * apart * count;
  }

 private:
  double highest_ = std::numeric_limits<double>::lowest();
};

}  // namespace droppeft
