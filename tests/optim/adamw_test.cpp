#include "droppeft/optim/adamw.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace {

using droppeft::AdamW;
using Options = torch::optim::AdamWOptions;
using State = torch::optim::AdamWParamState;
using Reference = torch::optim::AdamW;
using Tensors = std::vector<torch::Tensor>;

// Some smaller than a register, some with an odd end, one for several threads.
const std::vector<std::vector<std::int64_t>> shapes{{3}, {8, 17}, {}, {300, 211}, {0, 4}, {1025}};

Tensors parameters(std::uint64_t seed, torch::Dtype dtype = torch::kFloat) {
  torch::manual_seed(seed);
  Tensors made;
  for (const auto& shape : shapes)
    made.push_back(torch::randn(shape).to(dtype).set_requires_grad(true));
  return made;
}

// Gradients of a step, those of `without` (if not negative) undefined.
void set_gradients(Tensors& all, std::uint64_t seed, int without = -1) {
  torch::manual_seed(seed);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto gradient = torch::randn(all[i].sizes()).to(all[i].dtype());
    all[i].mutable_grad() = static_cast<int>(i) == without ? torch::Tensor() : gradient;
  }
}

// Two groups: one decays as `first` says, the other not at all.
template <class Optimizer>
std::unique_ptr<Optimizer> two_groups(const Tensors& all, const Options& first = {}) {
  const auto middle = all.begin() + 3;
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(Tensors(all.begin(), middle));
  groups.emplace_back(
      Tensors(middle, all.end()),
      std::make_unique<Options>(Options(3e-3).betas({0.8, 0.95}).eps(1e-6).weight_decay(0)));
  return std::make_unique<Optimizer>(groups, first);
}

State& state_of(torch::optim::Optimizer& optimizer, const torch::Tensor& parameter) {
  return static_cast<State&>(*optimizer.state().at(parameter.unsafeGetTensorImpl()));
}

bool same(const Tensors& a, const Tensors& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::equal(a[i], b[i])) return false;
  return a.size() == b.size();
}

bool same_states(torch::optim::Optimizer& a, const Tensors& of_a, torch::optim::Optimizer& b,
                 const Tensors& of_b) {
  if (a.state().size() != b.state().size()) return false;
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    const State &x = state_of(a, of_a[i]), &y = state_of(b, of_b[i]);
    if (x.step() != y.step() || !torch::equal(x.exp_avg(), y.exp_avg()) ||
        !torch::equal(x.exp_avg_sq(), y.exp_avg_sq()))
      return false;
  }
  return true;
}

// Steps both, and says whether they are alike to the bit, parameters and states.
bool steps_alike(Tensors& ours, torch::optim::Optimizer& optimizer, Tensors& theirs,
                 torch::optim::Optimizer& reference) {
  for (std::uint64_t step = 0; step < 5; ++step) {
    set_gradients(ours, step);
    set_gradients(theirs, step);
    optimizer.step();
    reference.step();
  }
  return same(ours, theirs) && same_states(optimizer, ours, reference, theirs);
}

struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

}  // namespace

TEST_CASE("two hundred steps are those of torch::optim::AdamW, as near to exact arithmetic") {
  const auto options = Options(1e-2).weight_decay(0.1);
  auto ours = parameters(1), theirs = parameters(1), exact = parameters(1, torch::kDouble);
  const auto optimizer = two_groups<AdamW>(ours, options);
  const auto reference = two_groups<Reference>(theirs, options);
  const auto truth = two_groups<Reference>(exact, options);
  for (std::uint64_t step = 0; step < 200; ++step) {
    for (Tensors* all : {&ours, &theirs, &exact}) set_gradients(*all, step);
    optimizer->step();
    reference->step();
    truth->step();
  }
  const auto error = [](const torch::Tensor& got, const torch::Tensor& expected) {
    return ((got.to(torch::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
  };
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i].numel() == 0) continue;
    CAPTURE(i);
    const State& got = state_of(*optimizer, ours[i]);
    const State &other = state_of(*reference, theirs[i]), &wanted = state_of(*truth, exact[i]);
    CHECK(got.step() == 200);
    CHECK(error(ours[i], theirs[i].to(torch::kDouble)) < 2e-6);
    const auto as_near = [&](const auto& a, const auto& b, const auto& c) {
      return error(a, c) < 2 * error(b, c) + 1e-7;
    };
    CHECK(as_near(ours[i], theirs[i], exact[i]));
    CHECK(as_near(got.exp_avg(), other.exp_avg(), wanted.exp_avg()));
    CHECK(as_near(got.exp_avg_sq(), other.exp_avg_sq(), wanted.exp_avg_sq()));
  }
}

TEST_CASE("the number of threads changes no bit") {
  std::vector<Tensors> results;
  for (const int count : {1, 2, 5}) {
    const Threads threads(count);
    auto all = parameters(1);
    const auto optimizer = two_groups<AdamW>(all);
    for (std::uint64_t step = 0; step < 5; ++step) {
      set_gradients(all, step);
      optimizer->step();
    }
    results.push_back(all);
  }
  CHECK(same(results[0], results[1]));
  CHECK(same(results[0], results[2]));
}

TEST_CASE("a parameter without a gradient is left alone: value, moments, count and memory") {
  auto all = parameters(1);
  const auto optimizer = two_groups<AdamW>(all);
  const auto before = all[1].detach().clone();
  for (std::uint64_t step = 0; step < 3; ++step) {
    set_gradients(all, step, 1);
    optimizer->step();
  }
  CHECK(torch::equal(all[1], before));
  CHECK(all[1]._version() == 0);
  CHECK(optimizer->state().size() == all.size() - 1);

  // Afterwards its first step is a first step.
  auto alone = parameters(1);
  const auto fresh = two_groups<AdamW>(alone);
  set_gradients(all, 9);
  set_gradients(alone, 9);
  optimizer->step();
  fresh->step();
  CHECK(torch::equal(all[1], alone[1]));
  CHECK(state_of(*optimizer, all[1]).step() == 1);
  CHECK(state_of(*optimizer, all[0]).step() == 4);

  // Dropped later, it keeps its moments.
  const auto value = all[1].detach().clone(),
             average = state_of(*optimizer, all[1]).exp_avg().clone();
  set_gradients(all, 10, 1);
  optimizer->step();
  CHECK(torch::equal(all[1], value));
  CHECK(torch::equal(state_of(*optimizer, all[1]).exp_avg(), average));
  CHECK(state_of(*optimizer, all[1]).step() == 1);
}

TEST_CASE("without any gradient or parameter nothing happens") {
  auto all = parameters(1);
  const auto before = parameters(1);
  two_groups<AdamW>(all)->step();
  CHECK(same(all, before));
  AdamW(Tensors()).step();
}

TEST_CASE("what the one pass is not for is torch::optim::AdamW's, to the bit") {
  SUBCASE("amsgrad") {
    const auto options = Options(1e-2).amsgrad(true);
    auto ours = parameters(1), theirs = parameters(1);
    AdamW optimizer(ours, options);
    Reference reference(theirs, options);
    CHECK(steps_alike(ours, optimizer, theirs, reference));
    for (std::size_t i = 0; i < ours.size(); ++i)
      CHECK(torch::equal(state_of(optimizer, ours[i]).max_exp_avg_sq(),
                         state_of(reference, theirs[i]).max_exp_avg_sq()));
  }
  SUBCASE("other dtypes") {
    for (const auto dtype : {torch::kDouble, torch::kBFloat16, torch::kHalf}) {
      auto ours = parameters(1, dtype), theirs = parameters(1, dtype);
      const auto optimizer = two_groups<AdamW>(ours);
      const auto reference = two_groups<Reference>(theirs);
      CHECK(steps_alike(ours, *optimizer, theirs, *reference));
    }
  }
  SUBCASE("parameters that do not lie in a row") {
    const auto strided = [] {
      torch::manual_seed(1);
      return Tensors{torch::randn({5, 7}).t().set_requires_grad(true),
                     torch::randn({4, 6}).slice(1, 0, 6, 2).set_requires_grad(true)};
    };
    auto ours = strided(), theirs = strided();
    AdamW optimizer(ours);
    Reference reference(theirs);
    CHECK(steps_alike(ours, optimizer, theirs, reference));
  }
  SUBCASE("gradients that do not lie in a row") {
    const auto make = [] {
      torch::manual_seed(1);
      Tensors all{torch::randn({5, 7}).set_requires_grad(true)};
      all[0].mutable_grad() = torch::randn({7, 5}).t();
      return all;
    };
    const auto ours = make(), theirs = make();
    AdamW(ours).step();
    Reference(theirs).step();
    CHECK(same(ours, theirs));
  }
  SUBCASE("negated gradients, which are negated when they are read") {
    const auto make = [] {
      torch::manual_seed(1);
      Tensors all{torch::randn({5}).set_requires_grad(true)};
      all[0].mutable_grad() = torch::_neg_view(torch::randn({5}));
      return all;
    };
    const auto ours = make(), theirs = make();
    AdamW(ours).step();
    Reference(theirs).step();
    CHECK(same(ours, theirs));
  }
  SUBCASE("parameters that share memory") {
    const auto twice = [] {
      torch::manual_seed(1);
      const auto all = torch::randn({10}).set_requires_grad(true);
      return Tensors{all, torch::randn({3}).set_requires_grad(true), all,
                     all.detach().slice(0, 5).set_requires_grad(true)};
    };
    auto ours = twice(), theirs = twice();
    AdamW optimizer(ours);
    Reference reference(theirs);
    CHECK(steps_alike(ours, optimizer, theirs, reference));
    CHECK(state_of(optimizer, ours[0]).step() == 10);
  }
}

TEST_CASE("of parameters of several kinds each gets its own step") {
  const auto make = [] {
    auto all = parameters(1);
    all[1] = all[1].detach().to(torch::kDouble).set_requires_grad(true);
    all[4] = all[4].detach().t().set_requires_grad(true);
    return all;
  };
  auto ours = make(), theirs = make();
  const auto optimizer = two_groups<AdamW>(ours);
  const auto reference = two_groups<Reference>(theirs);
  for (std::uint64_t step = 0; step < 5; ++step) {
    set_gradients(ours, step);
    set_gradients(theirs, step);
    optimizer->step();
    reference->step();
  }
  CHECK(optimizer->param_groups()[0].params().size() == 3);
  CHECK(optimizer->param_groups()[1].params().size() == 3);
  CHECK(torch::equal(ours[1], theirs[1]));
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CHECK(torch::allclose(ours[i], theirs[i], 1e-6, 1e-6));
    CHECK(state_of(*optimizer, ours[i]).step() == 5);
  }
}

TEST_CASE(
    "a sparse gradient is refused as by torch::optim::AdamW, and the optimiser is as before") {
  torch::nn::Embedding table(torch::nn::EmbeddingOptions(5, 2).sparse(true));
  const auto dense = torch::ones({3}, torch::requires_grad());
  AdamW optimizer(Tensors{dense, table->weight});
  table->forward(torch::tensor({1, 3})).sum().backward();
  dense.sum().backward();
  CHECK_THROWS_WITH_AS(optimizer.step(), doctest::Contains("does not support sparse gradients"),
                       c10::Error);
  CHECK(optimizer.param_groups()[0].params().size() == 2);
  CHECK(torch::equal(dense, torch::ones({3})));
  optimizer.zero_grad();
  dense.sum().backward();
  optimizer.step();
  CHECK_FALSE(torch::equal(dense, torch::ones({3})));
}

TEST_CASE("its files are torch::optim::AdamW's, and hold every bit") {
  const auto saved = [](const torch::optim::Optimizer& optimizer) {
    std::stringstream file;
    torch::save(optimizer, file);
    return file;
  };
  const auto options = Options(1e-2).weight_decay(0.1);
  auto all = parameters(1), copies = parameters(2), others = parameters(3);
  const auto optimizer = two_groups<AdamW>(all, options);
  for (std::uint64_t step = 0; step < 3; ++step) {
    set_gradients(all, step);
    optimizer->step();
  }

  const auto copy = two_groups<AdamW>(copies);
  const auto reference = two_groups<Reference>(others);
  for (torch::optim::Optimizer* loaded : {static_cast<torch::optim::Optimizer*>(copy.get()),
                                          static_cast<torch::optim::Optimizer*>(reference.get())}) {
    auto file = saved(*optimizer);
    torch::load(*loaded, file);
  }
  CHECK(same_states(*optimizer, all, *copy, copies));
  CHECK(same_states(*optimizer, all, *reference, others));
  CHECK(copy->param_groups()[0].options().get_lr() == 1e-2);
  {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < all.size(); ++i) copies[i].copy_(all[i]);
  }
  CHECK(steps_alike(all, *optimizer, copies, *copy));

  set_gradients(others, 8);
  reference->step();
  const auto back = two_groups<AdamW>(all);
  auto file = saved(*reference);
  torch::load(*back, file);
  CHECK(same_states(*back, all, *reference, others));
}

TEST_CASE("moments of another shape are refused as by torch::optim::AdamW") {
  const auto parameter = torch::ones({3}, torch::requires_grad());
  parameter.sum().backward();
  AdamW optimizer(Tensors{parameter});
  optimizer.step();
  state_of(optimizer, parameter).exp_avg(torch::zeros({4}));
  CHECK_THROWS_AS(optimizer.step(), c10::Error);
}

TEST_CASE("the closure is called once, with gradients enabled, and its loss is returned") {
  const auto parameter = torch::ones({3}, torch::requires_grad());
  AdamW optimizer(Tensors{parameter}, Options(0.5).weight_decay(0));
  torch::NoGradGuard no_grad;
  int calls = 0;
  const auto loss = optimizer.step([&] {
    ++calls;
    optimizer.zero_grad();
    auto sum = parameter.sum();
    sum.backward();
    return sum;
  });
  CHECK(calls == 1);
  CHECK(loss.item<float>() == 3);
  CHECK(torch::allclose(parameter, torch::full({3}, 0.5)));
  CHECK_FALSE(optimizer.step().defined());
}

TEST_CASE("autograd notices that a step has changed what it keeps for backward") {
  const auto parameter = torch::ones({3}, torch::requires_grad());
  AdamW optimizer(Tensors{parameter});
  const auto loss = parameter.square().sum();
  parameter.mutable_grad() = torch::ones({3});
  optimizer.step();
  CHECK_THROWS_WITH_AS(loss.backward(), doctest::Contains("modified by an inplace operation"),
                       c10::Error);
}

TEST_CASE("schedulers set its rate") {
  const auto make = [] { return Tensors{torch::zeros({1}, torch::requires_grad())}; };
  auto ours = make(), theirs = make();
  AdamW optimizer(ours);
  Reference reference(theirs);
  torch::optim::StepLR schedule(optimizer, 1, 0.5), other(reference, 1, 0.5);
  for (std::uint64_t step = 0; step < 4; ++step) {
    set_gradients(ours, step);
    set_gradients(theirs, step);
    optimizer.step();
    reference.step();
    schedule.step();
    other.step();
  }
  CHECK(optimizer.param_groups()[0].options().get_lr() < 0.5e-3);
  CHECK(torch::allclose(ours[0], theirs[0], 1e-6, 0));
}

TEST_CASE("a group added later is stepped with its own options") {
  const auto first = torch::zeros({2}, torch::requires_grad());
  const auto second = torch::zeros({2}, torch::requires_grad());
  AdamW optimizer(Tensors{first}, Options(1).weight_decay(0));
  optimizer.add_param_group(
      {Tensors{second}, std::make_unique<Options>(Options(0.25).weight_decay(0))});
  (first + second).sum().backward();
  optimizer.step();
  CHECK(torch::allclose(first, torch::full({2}, -1.0)));
  CHECK(torch::allclose(second, torch::full({2}, -0.25)));
}

TEST_CASE("wrong options are refused with range and value, in defaults and in groups") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<Options, std::string>> wrong{
      {Options(-1), "lr must be at least 0, got -1"},
      {Options(nan), "lr must be at least 0, got nan"},
      {Options().eps(-1e-8), "eps must be at least 0, got -1e-08"},
      {Options().weight_decay(-0.5), "weight_decay must be at least 0, got -0.5"},
      {Options().weight_decay(nan), "weight_decay must be at least 0, got nan"},
      {Options().betas({1, 0.999}), "betas must be in [0, 1), got 1 and 0.999"},
      {Options().betas({0.9, -0.1}), "betas must be in [0, 1), got 0.9 and -0.1"},
      {Options().betas({0.9, nan}), "betas must be in [0, 1), got 0.9 and nan"}};
  const Tensors all{torch::zeros({2}, torch::requires_grad())};
  for (const auto& [options, text] : wrong) {
    const std::string message = "droppeft::AdamW: " + text;
    CHECK_THROWS_WITH_AS(AdamW(all, options), message.c_str(), std::invalid_argument);
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(all, std::make_unique<Options>(options));
    CHECK_THROWS_WITH_AS(AdamW(groups, Options()), message.c_str(), std::invalid_argument);
  }
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(all, std::make_unique<torch::optim::SGDOptions>(0.1));
  CHECK_THROWS_WITH_AS(AdamW(groups, Options()),
                       "droppeft::AdamW: the options of a group must be torch::optim::AdamWOptions",
                       std::invalid_argument);
}
