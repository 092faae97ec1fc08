#define DOCTEST_CONFIG_IMPLEMENT
#include <ATen/Context.h>
#include <doctest/doctest.h>

#include <iostream>

int main(int argc, char** argv) {
  constexpr int skipped = 77;  // CTest's SKIP_RETURN_CODE
  if (!at::hasCUDA()) {
    std::cout << "compiled, not run: no GPU, or a LibTorch without CUDA\n";
    return skipped;
  }
  return doctest::Context(argc, argv).run();
}
