#include "droppeft/memory/meter.hpp"

#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support.hpp"

using droppeft::MemoryMeter;

TEST_CASE("a tensor counts its bytes until it is released") {
  MemoryMeter meter;
  CHECK(meter.current() == 0);
  CHECK(meter.peak() == 0);
  auto floats = torch::empty({1000});
  CHECK(meter.current() == 4000);
  auto bytes = torch::empty({3}, torch::kByte);
  CHECK(meter.current() == 4003);
  const auto view = floats.view({10, 100}).t();
  CHECK(meter.current() == 4003);
  floats.reset();
  CHECK(meter.current() == 4003);
  bytes.reset();
  CHECK(meter.current() == 4000);
  CHECK(meter.peak() == 4003);
}

TEST_CASE("the peak is the most held at one time, and starts anew on demand") {
  MemoryMeter meter;
  for (int i = 0; i < 3; ++i) torch::empty({100}, torch::kDouble);
  CHECK(meter.peak() == 800);
  const auto a = torch::empty({100}, torch::kDouble);
  torch::empty({200}, torch::kDouble);
  CHECK(meter.peak() == 2400);
  meter.reset_peak();
  CHECK(meter.peak() == 800);
  torch::empty({50}, torch::kDouble);
  CHECK(meter.peak() == 1200);
}

TEST_CASE("what was allocated before does not count, nor does its release") {
  auto before = torch::empty({1000});
  MemoryMeter meter;
  before.reset();
  CHECK(meter.current() == 0);
  const auto after = torch::empty({10});
  CHECK(meter.current() == 40);
  CHECK(meter.peak() == 40);
}

TEST_CASE("an address that an earlier meter knew and that was used again does not count") {
  torch::Tensor tensor;
  {
    MemoryMeter earlier;
    tensor = torch::empty({333});
  }
  tensor.reset();
  tensor = torch::empty({333});  // most likely at the same address
  MemoryMeter meter;
  tensor.reset();
  CHECK(meter.current() == 0);
}

TEST_CASE("memory released on a thread of its own is given up when its address comes back") {
  MemoryMeter meter;
  auto tensor = torch::empty({1000});
  std::thread([&] { tensor.reset(); }).join();
  CHECK(meter.current() == 4000);
  std::vector<torch::Tensor> fresh;
  for (int i = 0; i < 100; ++i) fresh.push_back(torch::empty({1000}));
  CHECK(meter.current() <= 101 * 4000);
  CHECK(meter.current() >= 100 * 4000);
}

TEST_CASE("meters nest: the outer one counts what the inner one sees") {
  MemoryMeter outer;
  const auto a = torch::empty({100});
  torch::Tensor b;
  {
    MemoryMeter inner;
    b = torch::empty({50});
    CHECK(inner.current() == 200);
    CHECK(outer.current() == 600);
    inner.reset_peak();
    torch::empty({1000});
    CHECK(inner.peak() == 4200);
  }
  CHECK(outer.current() == 600);
  CHECK(outer.peak() == 4600);
  b.reset();
  CHECK(outer.current() == 400);
}

TEST_CASE("an exception leaves no meter behind") {
  MemoryMeter outer;
  try {
    MemoryMeter inner;
    const auto lost = torch::empty({100});
    throw std::runtime_error("on purpose");
  } catch (const std::runtime_error&) {
  }
  CHECK(outer.current() == 0);
  CHECK(outer.peak() == 400);
  const auto a = torch::empty({1});
  CHECK(outer.current() == 4);
}

TEST_CASE("other threads do not count") {
  MemoryMeter meter;
  torch::Tensor theirs;
  std::thread([&] { theirs = torch::empty({1000}); }).join();
  CHECK(meter.current() == 0);
  theirs.reset();
  CHECK(meter.current() == 0);
}

TEST_CASE("a graph holds its saved tensors, backward gives them back and leaves the gradient") {
  const auto x = torch::randn({100, 10});
  const auto w = torch::randn({10, 10}, torch::requires_grad());
  const std::int64_t matrix = 4 * 100 * 10;
  MemoryMeter meter;
  torch::Tensor loss = torch::mm(x, w).sigmoid().sum();  // sigmoid keeps its output
  CHECK(meter.current() == matrix + 4);
  loss.backward();
  loss.reset();
  CHECK(meter.current() == 4 * 10 * 10);
  CHECK(meter.peak() >= 2 * matrix);
  CHECK(meter.peak() <= 3 * matrix + 4 * 10 * 10 + 8);
}
