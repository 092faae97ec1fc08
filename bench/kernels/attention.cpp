// Attention in fp32 of heads that lie side by side in their rows, forward and backward: droppeft's
// against LibTorch's fused one, and against its products at the rate of at::mm.
#include <ATen/ATen.h>

#include <cstdint>
#include <droppeft/core/attention.hpp>

#include "report.hpp"

namespace {

struct Shape {
  const char* name;
  std::int64_t sequences, length, heads, width;
};
const Shape shapes[] = {{"MiniLM", 16, 64, 12, 32},
                        {"MiniLM, 37 tokens", 16, 37, 12, 32},
                        {"BERT-base", 8, 128, 12, 64},
                        {"BERT-large", 4, 128, 16, 64},
                        {"BERT-large, 256 tokens", 2, 256, 16, 64}};

struct Buffers {
  at::Tensor q, k, v, to_y;
};

void add_rows(Report& report, const Shape& shape) {
  const auto [name, sequences, length, heads, width] = shape;
  const auto numbers = static_cast<double>(sequences * length * heads * width);
  const double product = 2 * numbers * static_cast<double>(length);
  // Forward reads q, k, v and writes y; backward reads the gradient of y too and writes three more.
  Case work{.kernel = "attention_forward",
            .shape = name,
            .bytes = 4 * 4 * numbers,
            .flops = 2 * product,
            .calls = 4};
  const auto buffers = rotated(4 * 4 * numbers, [&] {
    const auto random = [&] {
      return at::randn({sequences, length, heads, width}).transpose(1, 2).requires_grad_();
    };
    return Buffers{random(), random(), random(), random().detach()};
  });
  const auto ours = [=] {
    const Buffers& x = buffers->next();
    return droppeft::attention(x.q, x.k, x.v);
  };
  const auto theirs = [=] {
    const Buffers& x = buffers->next();
    return at::scaled_dot_product_attention(x.q, x.k, x.v);
  };
  report.add(work, "droppeft", ours);
  report.add(work, "LibTorch", theirs);

  work.kernel = "attention_backward";
  work.bytes = 7 * 4 * numbers;
  work.flops = 5 * product;  // the scores anew, and two products for each of the forward's
  const auto backward = [=](at::Tensor& y) { y.backward(buffers->next().to_y); };
  const auto differentiate = [=](const auto& forward) {
    return [=] {
      const Buffers& x = buffers->next();
      for (const at::Tensor* leaf : {&x.q, &x.k, &x.v}) leaf->mutable_grad().reset();
      return forward();
    };
  };
  report.add(work, "droppeft", differentiate(ours), backward);
  report.add(work, "LibTorch", differentiate(theirs), backward);
}

}  // namespace

int main(int count, char** arguments) {
  Report report("attention", count, arguments);
  for (const Shape& shape : shapes) {
    add_rows(report, shape);
    if (report.quick()) break;
  }
  report.run();
  return report.finish();
}
