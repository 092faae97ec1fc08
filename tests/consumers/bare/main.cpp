#include <torch/nn/modules/linear.h>

#include "droppeft/droppeft.hpp"

std::int64_t counted_elsewhere(const torch::nn::Module& module);

int main() {
  const torch::nn::Linear layer(2, 3);
  const bool counted = droppeft::parameter_count(*layer) == 9 && counted_elsewhere(*layer) == 9;
  return counted ? 0 : 1;
}
