#include "droppeft/peft/targets.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using droppeft::Targets;

TEST_CASE("names and patterns match the paths that they match in peft") {
  const auto here = std::filesystem::path(__FILE__).parent_path();
  std::ifstream file(here / "../oracles/data/lora.json");
  REQUIRE(file);
  const auto oracle = nlohmann::json::parse(file);
  for (const auto& entry : oracle.at("targets")) {
    const auto& wanted = entry.at("targets");
    CAPTURE(wanted.dump());
    const Targets targets = wanted.is_string() ? Targets(wanted.get<std::string>().c_str())
                                               : Targets(wanted.get<std::vector<std::string>>());
    std::vector<std::string> matched;
    for (const auto& path : oracle.at("paths"))
      if (targets.match(path.get<std::string>())) matched.push_back(path.get<std::string>());
    CHECK(matched == entry.at("paths").get<std::vector<std::string>>());
  }
}

TEST_CASE("braces around one name make a list, a bare string is a pattern") {
  const Targets list{"query"}, pattern = "query";
  CHECK(list.match("layer.0.query"));
  CHECK_FALSE(pattern.match("layer.0.query"));
}

TEST_CASE("all-linear takes every path, nothing named takes none") {
  CHECK(Targets("all-linear").match("anything.at.all"));
  CHECK(Targets("all-linear").match(""));
  CHECK_FALSE(Targets({"all-linear"}).match("anything.at.all"));
  CHECK_FALSE(Targets(std::vector<std::string>{}).match("query"));
  CHECK_FALSE(Targets("").match("query"));
}

TEST_CASE("what is no regular expression is refused with its text") {
  CHECK_THROWS_WITH_AS(Targets("layer.(0|1"),
                       doctest::Contains("Targets: 'layer.(0|1' is not a regular expression: "),
                       std::invalid_argument);
}
