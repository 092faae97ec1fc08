// The federation of the README, line by line, on a task that it must learn. tests/readme.py
// compares the two.
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <utility>
#include <vector>

#include "droppeft/core/module.hpp"
#include "droppeft/core/state.hpp"
#include "droppeft/dropout/layer_dropout.hpp"
#include "droppeft/federated/agreement.hpp"
#include "droppeft/federated/fedavg.hpp"
#include "droppeft/federated/pace.hpp"
#include "droppeft/pace_configurator.hpp"
#include "support.hpp"

namespace dp = droppeft;

namespace {

struct Device {
  at::Tensor x, y;
};

}  // namespace

TEST_CASE("the federation of the README learns") {
  torch::manual_seed(5);
  torch::nn::Sequential model;
  const std::size_t layers = 4;
  for (std::size_t layer = 0; layer < layers; ++layer)
    model->push_back(dp::LayerDropout(torch::nn::Linear(6, 6), 0.5));
  model->push_back(torch::nn::Linear(6, 6));
  const at::Tensor truth = torch::randn({6, 6});
  std::vector<Device> devices;
  for (int i = 0; i < 4; ++i) {
    devices.push_back({torch::randn({40, 6}), {}});
    devices.back().y = devices.back().x.mm(truth);
  }
  const std::vector<double> examples(devices.size(), 40);
  const std::vector<dp::RoundCost> costs{{9, 1}, {3, 1}, {1, 1}, {1, 1}};
  const auto loss_on = [&](const Device& device) {
    return at::mse_loss(model->forward(device.x), device.y);
  };
  const auto train = [&](torch::nn::Sequential& trained, const Device& device) {
    torch::optim::SGD optimizer(dp::trainable_parameters(*trained), 0.05);
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      loss_on(device).backward();
      optimizer.step();
    }
  };
  const auto loss = [&] {
    const torch::NoGradGuard no_grad;
    model->eval();
    const double value = loss_on(devices[0]).item<double>();
    model->train();
    return value;
  };
  const double before = loss();
  const int rounds = 30;
  dp::State global = dp::trainable_state(*model);

  // clang-format off
  dp::PaceConfigurator chooser;
  for (int round = 0; round < rounds; ++round) {
    const double deadline = dp::round_seconds(costs, chooser.choose(costs));  // costs: seconds of each device
    std::vector<double> rates;
    std::vector<dp::State> updates;
    dp::FedAvg average;
    for (std::size_t i = 0; i < devices.size(); ++i) {
      rates.push_back(costs[i].drop_rate(deadline));  // slow devices drop layers, the fast need not
      dp::load_state(*model, global);
      dp::set_drop_rates(*model, dp::drop_rates(dp::RateShape::uniform, layers, rates[i]));
      train(model, devices[i]);  // your own loop
      const dp::State trained = dp::trainable_state(*model);
      average.add(trained, examples[i]);
      updates.push_back(trained - global);
    }
    chooser.report(rates, dp::agreement(updates, examples));  // how far each went the way of the others
    global = global.updated(average.value());
  }
  // clang-format on

  dp::load_state(*model, global);
  CHECK(loss() < 0.5 * before);
  double reports = 0;
  for (const auto& belief : chooser.beliefs()) reports += belief.reports;
  CHECK(reports > 50);
}
