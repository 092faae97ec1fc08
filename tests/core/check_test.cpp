#include "droppeft/core/check.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <stdexcept>
#include <string>

namespace {

std::string message_of(double rate) {
  try {
    droppeft::check(rate >= 0 && rate < 1, "Thing: rate must be in [0, 1), got ", rate);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a condition that holds throws nothing and formats nothing") {
  CHECK(message_of(0) == "");
  droppeft::check(true, "unused");
  droppeft::require(true, "unused");
}

TEST_CASE("a broken condition throws with the value in the message") {
  CHECK(message_of(1.5) == "Thing: rate must be in [0, 1), got 1.5");
  CHECK(message_of(-0.1) == "Thing: rate must be in [0, 1), got -0.1");
  CHECK(message_of(1e300) == "Thing: rate must be in [0, 1), got 1e+300");
}

TEST_CASE("NaN fails a condition that is phrased as what must hold") {
  CHECK(message_of(std::numeric_limits<double>::quiet_NaN()) ==
        "Thing: rate must be in [0, 1), got nan");
}

TEST_CASE("a value just outside the range is printed with all its digits") {
  const double just_above = 1 + std::numeric_limits<double>::epsilon();
  CHECK(message_of(just_above) == "Thing: rate must be in [0, 1), got 1.0000000000000002");
}

TEST_CASE("check blames the caller and require the world") {
  CHECK_THROWS_AS(droppeft::check(false, "x"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(droppeft::require(false, "no file '", "a.csv", "'"), "no file 'a.csv'",
                       std::runtime_error);
}
