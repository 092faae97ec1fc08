// A model and a training loop of your own, with layer dropout and LoRA added. The lines that name
// droppeft (dp) are all that it takes.
#include <torch/torch.h>

#include <droppeft/droppeft.hpp>
#include <iostream>

namespace dp = droppeft;
namespace nn = torch::nn;

struct BlockImpl : nn::Cloneable<BlockImpl> {
  explicit BlockImpl(int64_t features) : width(features) { reset(); }
  void reset() override {
    norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width})));
    up = register_module("up", dp::Linear(width, 4 * width));  // a Linear that can carry LoRA
    down = register_module("down", dp::Linear(4 * width, width));
  }
  at::Tensor forward(const at::Tensor& x) {
    return x + down->forward(at::gelu(up->forward(norm->forward(x))));
  }
  int64_t width;
  nn::LayerNorm norm{nullptr};
  dp::Linear up{nullptr}, down{nullptr};
};
TORCH_MODULE(Block);

int main() {
  torch::manual_seed(0);
  nn::Sequential model;
  for (int layer = 0; layer < 8; ++layer) model->push_back(dp::LayerDropout(Block(64), 0.5));
  dp::add_lora(*model, {"up", "down"}, dp::LoraOptions(8).alpha(16));  // freezes all the rest
  dp::AdamW optimizer(dp::trainable_parameters(*model), 1e-2);

  const auto x = at::randn({256, 64}), y = x.roll(1, 1);
  dp::Stream stream(/*seed=*/0);
  for (std::uint64_t step = 0; step < 200; ++step) {
    const dp::Plan plan = dp::FixedGate()(dp::drop_rates(*model), stream.fold(step));
    dp::PlanScope scope(*model, plan);  // 4 of the 8 layers exist in this step
    const auto loss = at::mse_loss(model->forward(x), y);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (step % 50 == 49)
      std::cout << "step " << step + 1 << "  loss " << loss.item<float>() << "\n";
  }
  model->eval();  // full depth
  std::cout << "all layers: loss " << at::mse_loss(model->forward(x), y).item<float>() << "\n";
}
