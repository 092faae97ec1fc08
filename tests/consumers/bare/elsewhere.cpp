#include "droppeft/droppeft.hpp"

std::int64_t counted_elsewhere(const torch::nn::Module& module) {
  return droppeft::parameter_count(module);
}
