#pragma once

#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/bandit/active_arms.hpp"
#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/arm_records.hpp"
#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// A bandit that is shown a context, dimension() numbers, before it chooses an arm. In all else as
/// a Selector.
template <class S>
concept ContextualSelector = requires(S selector, const S& settled, std::span<const double> context,
                                      Ticket ticket, double reward, std::size_t arm,
                                      const nlohmann::json& saved) {
  { selector.select(context) } -> std::same_as<Ticket>;
  selector.update(ticket, reward);
  selector.expire(ticket);
  { settled.arms() } -> std::same_as<std::size_t>;
  { settled.dimension() } -> std::same_as<std::size_t>;
  { settled.record(arm) } -> std::same_as<ArmRecord>;
  { settled.save() } -> std::same_as<nlohmann::json>;
  selector.load(saved);
};

/// What makes a LinearSelector one bandit or another: a struct of settings with
/// - name: under which its state is saved;
/// - validate(): throws std::invalid_argument for a setting out of range;
/// - settings(): the settings as JSON, compared on load;
/// - score(mean, width, stream): of an arm whose model predicts the reward `mean`, and `width`, the
///   length of the context in the metric A^-1, says how little it knows there. The highest is
///   played.
template <class P>
concept LinearPolicy = std::copyable<P> &&
    requires(const P& policy, double mean, double width, Stream& stream) {
  { P::name } -> std::convertible_to<std::string_view>;
  policy.validate();
  { policy.settings() } -> std::same_as<nlohmann::json>;
  { policy.score(mean, width, stream) } -> std::same_as<double>;
};

namespace detail {

/// Ridge regression of rewards r on contexts x: A = ridge I + sum x x^T and b = sum r x, kept as
/// the Cholesky factor L of A and L^-1 b. They are what Givens rotations make of the rows (x, r),
/// so that A, whose condition is that of L squared, is never formed (Golub, Van Loan, "Matrix
/// computations", 4th edition, 6.5).
class RidgeRegression {
 public:
  RidgeRegression(std::size_t dimension, double ridge)
      : dimension_(dimension), packed_(size(dimension)) {
    std::size_t next = 0;
    for (std::size_t length = dimension; length > 0; next += length + 1, --length)
      packed_[next] = std::sqrt(ridge);
  }

  /// Adds a context and its reward, dimension + 1 numbers, which are used up.
  void add(double* row) {
    double* column = packed_.data();
    for (std::size_t length = dimension_; length > 0; --length) {
      const double diagonal = std::sqrt(*column * *column + *row * *row);
      const double c = *column / diagonal, s = *row / diagonal;
      *column++ = diagonal;
      ++row;
      for (std::size_t i = 0; i < length; ++i) {
        const double old = column[i];
        column[i] = c * old + s * row[i];
        row[i] = c * row[i] - s * old;
      }
      column += length;
    }
  }

  /// sqrt(x^T A^-1 x) = |L^-1 x|; x is used up.
  double width(double* x) const {
    const double* column = packed_.data();
    double squares = 0;
    for (std::size_t length = dimension_; length > 0; --length) {
      const double solved = *x++ / *column++;
      squares += solved * solved;
      for (std::size_t i = 0; i + 1 < length; ++i) x[i] -= solved * column[i];
      column += length;
    }
    return std::sqrt(squares);
  }

  /// A^-1 b.
  void solve(std::span<double> weights) const {
    const double* column = packed_.data() + packed_.size();
    for (std::size_t j = dimension_; j-- > 0;) {
      const std::size_t below = dimension_ - 1 - j;
      column -= below + 2;
      double rest = column[below + 1];
      for (std::size_t i = 0; i < below; ++i) rest -= column[i + 1] * weights[j + 1 + i];
      weights[j] = rest / *column;
    }
  }

  const std::vector<double>& save() const { return packed_; }

  void load(const Saved& saved, double ridge) {
    require(saved.size() == packed_.size(), "LinearSelector: a model must have ", packed_.size(),
            " numbers, got ", saved.size());
    std::size_t next = 0;
    for (std::size_t length = dimension_; length > 0; --length)
      for (std::size_t i = 0; i <= length; ++i, ++next)
        packed_[next] = saved.at(next).number(i == 0 ? std::sqrt(ridge) : -largest, largest);
  }

 private:
  // Above what 2^53 plays with contexts and rewards of 1e50 come to.
  static constexpr double largest = 1e60;

  static std::size_t size(std::size_t dimension) { return dimension * (dimension + 3) / 2; }

  std::size_t dimension_;
  std::vector<double> packed_;  // each column of L from its diagonal down, then its of L^-1 b
};

}  // namespace detail

/// LinUCB: plays the arm with the highest theta . x + alpha sqrt(x^T A^-1 x), x the context, A =
/// ridge I + sum x x^T and theta = A^-1 sum r x over the plays of the arm.
///
/// alpha is in the unit of the rewards: with c r for r and c alpha the choices are the same. If the
/// mean reward of each of K arms is linear in x, with weights at most S long, contexts at most X
/// long and R-sub-Gaussian noise, then with t plays so far and
///
///   alpha = R sqrt(2 ln(K / delta) + d ln(1 + t X^2 / (ridge d))) + sqrt(ridge) S
///
/// no score is ever below the mean reward of its arm, with probability 1 - delta (theorem 2 of
/// Abbasi-Yadkori, Pal, Szepesvari, "Improved algorithms for linear stochastic bandits", NIPS 2011,
/// for each arm). From that follows a regret of O(d sqrt(K T) ln(K T)) over T plays, each of which
/// has its reward before the next. For a fixed alpha, which does better in practice, nothing of the
/// kind is proven; the O(sqrt(d T ln^3(K T ln(T) / delta))) of Chu, Li, Reyzin, Schapire,
/// "Contextual bandits with linear payoff functions", AISTATS 2011, is that of SupLinUCB, which
/// keeps batches of plays apart.
///
/// Source: Li, Chu, Langford, Schapire, "A contextual-bandit approach to personalized news article
/// recommendation", WWW 2010, algorithm 1.
struct LinUcb {
  /// In [0, 1e50]. With 0 it is greedy.
  double alpha = 1;

  static constexpr std::string_view name = "lin_ucb";

  void validate() const {
    check(alpha >= 0 && alpha <= 1e50, "LinUcb: alpha must be in [0, 1e+50], got ", alpha);
  }

  nlohmann::json settings() const { return {{"alpha", alpha}}; }

  double score(double mean, double width, Stream&) const { return mean + alpha * width; }
};

/// Linear Thompson sampling: each arm draws weights from N(theta, v^2 A^-1), A and theta as in
/// LinUcb, and the arm whose weights predict the highest reward is played. The prediction alone is
/// drawn here, from its distribution N(theta . x, v^2 x^T A^-1 x).
///
/// With v the standard deviation of normal noise and the prior N(0, v^2 / ridge I) that is the
/// posterior. The default is for rewards in [0, 1], whose standard deviation is at most 1/2; a
/// smaller v explores less. v is in the unit of the rewards: with c r for r and c v the choices are
/// the same. The arms' models are the paper's single one of K d weights, in which the context of an
/// arm has its own d places. There, with ridge 1, weights and contexts at most 1 long and
/// R-sub-Gaussian noise, the regret over T plays, each of which has its reward before the next, is
/// O((K d)^(3/2) sqrt(T)) but for logarithms if v is of the order R sqrt(K d ln T): far more than
/// is good in practice.
///
/// Source: Agrawal, Goyal, "Thompson sampling for contextual bandits with linear payoffs", ICML
/// 2013.
struct LinThompson {
  /// v, in (0, 1e50].
  double noise_sd = 0.5;

  static constexpr std::string_view name = "lin_thompson";

  void validate() const {
    check(noise_sd > 0 && noise_sd <= 1e50, "LinThompson: noise_sd must be in (0, 1e+50], got ",
          noise_sd);
  }

  nlohmann::json settings() const { return {{"noise_sd", noise_sd}}; }

  double score(double mean, double width, Stream& stream) const {
    return mean + noise_sd * width * boost::random::normal_distribution<double>()(stream);
  }
};

/// Settings of a LinearSelector.
template <LinearPolicy Policy>
struct LinearOptions {
  /// Source of all its random numbers. The default is the same stream every time.
  Stream stream{};
  /// In [1e-50, 1e50], in the unit of the contexts squared: with c x for x and c^2 ridge the
  /// choices are the same. Pulls the weights to 0, like so many plays of each unit vector with
  /// reward 0.
  double ridge = 1;
  Policy policy{};
};

/// A ContextualSelector with one linear model an arm: the reward is theta . x and noise, theta the
/// arm's weights, x the context.
///
/// Contexts are `dimension` numbers in [-1e50, 1e50], rewards are in the same range. Numbers of
/// about the same size lose the least to rounding, and the ridge treats them alike; a constant 1
/// among them is an intercept. Arms without a visit come first, in random order; ties are broken by
/// the stream. An arm's weights come from the rewards that it has; the width of its score counts
/// the contexts of open tickets too, so that plays chosen before any answer differ (as GP-BUCB:
/// Desautels, Krause, Burdick, "Parallelizing exploration-exploitation tradeoffs in Gaussian
/// process bandit optimization", JMLR 15, 2014; for its bound the width is multiplied by a
/// constant). Arms may be added and retired at any time; each keeps its number for ever.
///
/// Not for rewards whose mean is not linear in the context, which no number of plays mends, nor for
/// those that drift, as nothing is forgotten. Each arm learns its d weights alone, so that K arms
/// take some K d plays before they help; without a context that matters a BanditSelector learns
/// faster.
///
/// Wrong arguments, numbers out of range and tickets that are not open are refused with
/// std::invalid_argument and change nothing. A value: a copy goes on as the original would. select
/// takes O(K d^2) time, update and expire O(d^2) for the play and for each ticket that is open on
/// its arm, and O(d) for each on others; memory is K d (d + 4) numbers. Nothing is allocated once
/// the most tickets have been open. No locks: one thread at a time.
template <LinearPolicy Policy>
class LinearSelector {
 public:
  using Options = LinearOptions<Policy>;

  /// arms >= 1, dimension in [1, 65536], the options in their ranges.
  LinearSelector(std::size_t arms, std::size_t dimension, Options options = Options())
      : policy_(options.policy),
        ridge_(options.ridge),
        dimension_(dimension),
        arms_("LinearSelector", arms),
        stream_(options.stream),
        records_(arms, 0, 1) {
    check(dimension >= 1 && dimension <= 65536,
          "LinearSelector: dimension must be in [1, 65536], got ", dimension);
    check(ridge_ >= 1e-50 && ridge_ <= 1e50,
          "LinearSelector: ridge must be in [1e-50, 1e+50], got ", ridge_);
    policy_.validate();
    models_.assign(arms, Model(dimension, ridge_));
    row_.resize(dimension + 1);
  }

  /// Arms that ever were, the retired ones too.
  std::size_t arms() const { return arms_.all(); }

  std::size_t dimension() const { return dimension_; }

  /// What is known of an arm whatever the context; arm < arms().
  ArmRecord record(std::size_t arm) const {
    check_arm(arm, "record");
    return records_[arm];
  }

  /// theta of an arm, which predicts the reward theta . x; arm < arms().
  std::vector<double> weights(std::size_t arm) const {
    check_arm(arm, "weights");
    return models_[arm].weights;
  }

  /// Adds an arm, to be tried next, and returns its number.
  std::size_t add_arm() {
    models_.emplace_back(dimension_, ridge_);
    records_.add_arm();
    arms_.add();
    return arms() - 1;
  }

  /// Never plays an arm again. Its open tickets remain. std::invalid_argument unless it is active.
  void retire(std::size_t arm) { arms_.retire(arm); }

  bool active(std::size_t arm) const { return arms_.contains(arm); }

  /// Opens a ticket for the arm to play now. std::invalid_argument when all arms are retired.
  Ticket select(std::span<const double> context) {
    arms_.check_any();
    check(context.size() == dimension_, "LinearSelector::select: context must have ", dimension_,
          " numbers, got ", context.size());
    for (std::size_t i = 0; i < dimension_; ++i)
      check(std::abs(context[i]) <= limit, "LinearSelector::select: context[", i, "] must be in [",
            -limit, ", ", limit, "], got ", context[i]);
    const Ticket ticket{next_id_++, choose(context.data()), 0};
    open_.open(ticket, "LinearSelector::select");
    contexts_.insert(contexts_.end(), context.begin(), context.end());
    records_.open(ticket.arm);
    add_open(ticket.arm, context.data());
    return ticket;
  }

  /// Closes an open ticket with its reward, in [-1e50, 1e50].
  void update(const Ticket& ticket, double reward) {
    check(std::abs(reward) <= limit, "LinearSelector::update: reward must be in [", -limit, ", ",
          limit, "], got ", reward);
    close(ticket, "LinearSelector::update");
    row_.back() = reward;
    Model& model = models_[ticket.arm];
    model.received.add(row_.data());
    model.received.solve(model.weights);
    records_.add(ticket.arm, reward);
    count_open(ticket.arm);
  }

  /// Closes an open ticket whose reward will never come, as if it had not been played.
  void expire(const Ticket& ticket) {
    close(ticket, "LinearSelector::expire");
    count_open(ticket.arm);
  }

  nlohmann::json save() const {
    auto models = nlohmann::json::array();
    for (const Model& model : models_) models.push_back(model.received.save());
    nlohmann::json saved{{"version", 1},
                         {"policy", Policy::name},
                         {"settings", policy_.settings()},
                         {"ridge", ridge_},
                         {"dimension", dimension_},
                         {"stream", stream_.state()},
                         {"next_id", next_id_},
                         {"open", open_.save()},
                         {"contexts", contexts_},
                         {"rewards", records_.save()},
                         {"models", models}};
    arms_.save_into(saved);
    return saved;
  }

  /// Goes on from a saved state of a selector that was made with the same options, the stream
  /// aside, and as many arms and dimensions. It has all arms of that one then, those added and
  /// retired since, too. A state that does not fit is refused with std::runtime_error and changes
  /// nothing.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "LinearSelector");
    saved["version"].expect(1);
    saved["policy"].expect(Policy::name);
    saved["settings"].expect(policy_.settings());
    saved["ridge"].expect(ridge_);
    saved["dimension"].expect(dimension_);
    LinearSelector loaded(*this);
    loaded.arms_.load(saved);
    loaded.stream_ = saved["stream"].stream();
    loaded.next_id_ = saved["next_id"].integer(OpenTickets::max_id);
    loaded.records_.load(saved["rewards"], loaded.arms(), -limit, limit);
    loaded.open_.load(saved["open"], loaded.next_id_, loaded.arms());
    loaded.load_contexts(saved["contexts"]);
    loaded.load_models(saved["models"]);
    for (const Ticket& ticket : loaded.open_.tickets()) loaded.records_.open(ticket.arm);
    *this = std::move(loaded);
  }

 private:
  struct Model {
    Model(std::size_t dimension, double ridge)
        : received(dimension, ridge), with_open(received), weights(dimension) {}

    detail::RidgeRegression received;
    /// With the contexts of open tickets, too; its rewards mean nothing.
    detail::RidgeRegression with_open;
    std::vector<double> weights;  // from what was received
  };

  // Keeps squares of contexts and rewards, and what is solved from them, finite.
  static constexpr double limit = 1e50;

  void check_arm(std::size_t arm, std::string_view function) const {
    check(arm < arms(), "LinearSelector::", function, ": arm must be below ", arms(), ", got ",
          arm);
  }

  /// The arm with the highest score, which is infinite without a visit.
  std::size_t choose(const double* context) {
    return arms_.highest(stream_, [&](std::size_t arm) {
      return records_[arm].visits() == 0 ? std::numeric_limits<double>::infinity()
                                         : score(models_[arm], context);
    });
  }

  double score(const Model& model, const double* context) {
    double mean = 0;
    for (std::size_t i = 0; i < dimension_; ++i) mean += model.weights[i] * context[i];
    std::copy_n(context, dimension_, row_.begin());
    return policy_.score(mean, model.with_open.width(row_.data()), stream_);
  }

  /// Closes a ticket and moves its context to row_.
  void close(const Ticket& ticket, std::string_view who) {
    const std::size_t place = open_.close(ticket, who) * dimension_;
    const auto context = contexts_.begin() + static_cast<std::ptrdiff_t>(place);
    const auto end = context + static_cast<std::ptrdiff_t>(dimension_);
    std::copy(context, end, row_.begin());
    contexts_.erase(context, end);
    records_.close(ticket.arm);
  }

  void add_open(std::size_t arm, const double* context) {
    std::copy_n(context, dimension_, row_.begin());
    row_.back() = 0;
    models_[arm].with_open.add(row_.data());
  }

  /// In the order of the ids, whatever was opened and closed before: rounding leaves no trace.
  void count_open(std::size_t arm) {
    models_[arm].with_open = models_[arm].received;
    for (std::size_t i = 0; i < open_.tickets().size(); ++i)
      if (open_.tickets()[i].arm == arm) add_open(arm, contexts_.data() + i * dimension_);
  }

  void load_contexts(const Saved& contexts) {
    const std::size_t size = open_.tickets().size() * dimension_;
    require(contexts.size() == size, "LinearSelector.contexts must have ", size, " elements, got ",
            contexts.size());
    contexts_.clear();
    for (std::size_t i = 0; i < size; ++i)
      contexts_.push_back(contexts.at(i).number(-limit, limit));
  }

  void load_models(const Saved& models) {
    require(models.size() == arms(), "LinearSelector.models must have ", arms(), " elements, got ",
            models.size());
    models_.assign(arms(), Model(dimension_, ridge_));
    for (std::size_t arm = 0; arm < arms(); ++arm) {
      models_[arm].received.load(models.at(arm), ridge_);
      models_[arm].received.solve(models_[arm].weights);
      require(std::ranges::all_of(models_[arm].weights, [](double w) { return std::isfinite(w); }),
              "LinearSelector.models[", arm, "] has weights that are not finite");
      count_open(arm);
    }
  }

  Policy policy_;
  double ridge_;
  std::size_t dimension_;
  ActiveArms arms_;
  Stream stream_;
  std::uint64_t next_id_ = 0;
  OpenTickets open_;
  std::vector<double> contexts_;  // of the open tickets, in their order
  ArmRecords records_;
  std::vector<Model> models_;
  std::vector<double> row_;  // scratch: a context and its reward
};

using LinUcbSelector = LinearSelector<LinUcb>;
using LinThompsonSelector = LinearSelector<LinThompson>;

}  // namespace droppeft
