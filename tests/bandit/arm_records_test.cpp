#include "droppeft/bandit/arm_records.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

ArmRecord record_of(const std::vector<double>& rewards) {
  ArmRecord record;
  for (const double reward : rewards) record.add(reward);
  return record;
}

void check_close(const ArmRecord& a, const ArmRecord& b) {
  CHECK(a.plays == doctest::Approx(b.plays).epsilon(1e-12));
  CHECK(a.sum == doctest::Approx(b.sum).epsilon(1e-12));
  CHECK(a.deviations == doctest::Approx(b.deviations).epsilon(1e-9));
}

}  // namespace

TEST_CASE("a record holds sum, mean and variance, of far away rewards too") {
  const ArmRecord record = record_of({1e8 + 1, 1e8 + 2, 1e8 + 6});
  CHECK(record.mean() == 1e8 + 3);
  CHECK(record.variance() == doctest::Approx(14.0 / 3).epsilon(1e-12));
  CHECK(ArmRecord{}.mean(0.3) == 0.3);
  CHECK(ArmRecord{}.variance() == 0);
  CHECK(record_of({0.7}).variance() == 0);
}

TEST_CASE("the record of two parts is the record of the whole") {
  ArmRecord whole = record_of({0.1, 0.9, 0.4});
  whole.add(record_of({0.3, 0.2}));
  check_close(whole, record_of({0.1, 0.9, 0.4, 0.3, 0.2}));
  ArmRecord empty;
  empty.add(whole);
  check_close(empty, whole);
  whole.add(ArmRecord{});
  check_close(empty, whole);
}

TEST_CASE("a window holds what its last rewards say, whatever the arms' shares of them") {
  for (const std::size_t window : {1U, 2U, 7U, 100U}) {
    ArmRecords records(3, window, 1);
    std::vector<std::pair<std::size_t, double>> history;
    Stream world(3);
    for (int i = 0; i < 400; ++i) {
      // Long spells of one arm, and then mixed ones.
      const std::size_t arm = i % 100 < 50 ? static_cast<std::size_t>(i / 100) % 3 : world() % 3;
      history.emplace_back(arm, world.uniform());
      records.add(arm, history.back().second);
      for (std::size_t each = 0; each < 3; ++each) {
        std::vector<double> rewards;
        for (std::size_t j = history.size() - std::min(window, history.size()); j < history.size();
             ++j)
          if (history[j].first == each) rewards.push_back(history[j].second);
        check_close(records[each], record_of(rewards));
      }
    }
  }
}

TEST_CASE("a discount weighs a reward by its age") {
  ArmRecords records(2, 0, 0.9);
  std::vector<std::pair<std::size_t, double>> history;
  Stream world(4);
  for (int i = 0; i < 100; ++i) {
    history.emplace_back(world() % 2, world.uniform());
    records.add(history.back().first, history.back().second);
  }
  for (std::size_t arm = 0; arm < 2; ++arm) {
    double plays = 0, sum = 0, squares = 0;
    for (std::size_t i = 0; i < history.size(); ++i) {
      const double weight = std::pow(0.9, static_cast<double>(history.size() - 1 - i));
      if (history[i].first != arm) continue;
      plays += weight;
      sum += weight * history[i].second;
      squares += weight * history[i].second * history[i].second;
    }
    CHECK(records[arm].plays == doctest::Approx(plays).epsilon(1e-12));
    CHECK(records[arm].sum == doctest::Approx(sum).epsilon(1e-12));
    CHECK(records[arm].variance() ==
          doctest::Approx(squares / plays - sum * sum / plays / plays).epsilon(1e-9));
  }
}

TEST_CASE("pending plays belong to an arm, not to a window") {
  ArmRecords records(2, 2, 1);
  records.open(0);
  records.open(0);
  for (int i = 0; i < 5; ++i) records.add(1, 0.5);
  CHECK(records[0].pending == 2);
  CHECK(records[0].plays == 0);
  records.close(0);
  CHECK(records[0].visits() == 1);
}
