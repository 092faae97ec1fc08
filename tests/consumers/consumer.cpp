#include <torch/nn/modules/linear.h>

#include "droppeft/core/module.hpp"
#include "droppeft/dropout/layer_dropout.hpp"
#include "droppeft/random/stream.hpp"

int main() {
  droppeft::LayerDropout layer(torch::nn::Linear(4, 4), 0.5);
  layer->set_stream(droppeft::Stream(1));
  const auto x = at::ones({2, 4});
  int dropped = 0;
  for (int step = 0; step < 100; ++step) dropped += layer->forward(x).is_same(x);
  const bool fair = 20 < dropped && dropped < 80;
  return fair && droppeft::parameter_count(*layer) == 20 ? 0 : 1;
}
