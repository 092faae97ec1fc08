#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <iostream>

int main(int argc, char** argv) {
  constexpr int skipped = 77;  // CTest's SKIP_RETURN_CODE
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::cout << "compiled, not run: no GPU\n";
    return skipped;
  }
  return doctest::Context(argc, argv).run();
}
