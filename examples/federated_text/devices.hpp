#pragma once

#include <algorithm>
#include <array>
#include <boost/random/gamma_distribution.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <droppeft/core/check.hpp>
#include <droppeft/random/shuffle.hpp>
#include <droppeft/random/stream.hpp>
#include <numeric>
#include <string_view>
#include <vector>

#include "text_data.hpp"

/// A speed class: the fp32 arithmetic that a device sustains in training, FLOP/s, and its memory
/// for that in those of a slow one. The figures are our assumption, at the scale of a Raspberry Pi
/// 4, a Raspberry Pi 5 and a small laptop.
struct SpeedClass {
  std::string_view name;
  double flops;
  double memory;
};
inline constexpr std::array speed_classes{
    SpeedClass{"slow", 10e9, 1}, SpeedClass{"middle", 30e9, 2}, SpeedClass{"fast", 90e9, 4}};

/// One simulated device.
struct Device {
  std::vector<std::size_t> train;  // rows that it trains on
  std::vector<std::size_t> held;   // rows held back to measure a gain on, if any
  std::vector<std::size_t> test;   // its share of the test set
  std::size_t speed;               // its place in speed_classes
  double bandwidth;                // bits per second, either way

  const SpeedClass& speed_class() const { return speed_classes.at(speed); }
};

/// Deals `rows` of each class to `shares`: shares[class][device], each class summing to 1.
inline std::vector<std::vector<std::size_t>> deal(const std::vector<Example>& examples,
                                                  const std::vector<std::vector<double>>& shares,
                                                  const droppeft::Stream& stream) {
  std::vector<std::vector<std::size_t>> dealt(shares.front().size());
  for (std::size_t label = 0; label < shares.size(); ++label) {
    std::vector<std::size_t> rows;
    for (std::size_t row = 0; row < examples.size(); ++row)
      if (examples[row].label == static_cast<std::int64_t>(label)) rows.push_back(row);
    droppeft::Stream order = stream.fold(label);
    droppeft::shuffle(std::span(rows), order);
    double share = 0;
    std::size_t first = 0;
    for (std::size_t device = 0; device < dealt.size(); ++device) {
      share += shares[label][device];
      const auto end =
          device + 1 == dealt.size()
              ? rows.size()
              : static_cast<std::size_t>(share * static_cast<double>(rows.size()) + 0.5);
      for (; first < std::min(end, rows.size()); ++first) dealt[device].push_back(rows[first]);
    }
  }
  return dealt;
}

/// Devices with unlike data, speeds and links: each class is dealt by Dirichlet(alpha) over the
/// devices, the test set in the same proportions; then the poorest devices are given rows of the
/// richest until each has at least `least` to train on, and `held` held back. Speed classes go
/// round robin, bandwidths are log-uniform in [1, 100] Mbit/s. Throws std::invalid_argument when
/// there are too few rows.
inline std::vector<Device> make_devices(const TextData& data, std::size_t count, double alpha,
                                        std::size_t least, std::size_t held,
                                        const droppeft::Stream& stream) {
  least += held;
  droppeft::check(least <= data.train.size() / count, "--clients: ", count, " devices need ", least,
                  " training rows each (two of --batch, and those held back), but there are only ",
                  data.train.size());
  droppeft::Stream numbers = stream.fold(0);
  std::vector<std::vector<double>> shares;
  for (std::size_t label = 0; label < data.labels.size(); ++label) {
    boost::random::gamma_distribution<double> gamma(alpha);
    std::vector<double> share(count);
    for (double& part : share) part = gamma(numbers);
    const double total = std::accumulate(share.begin(), share.end(), 0.0);
    if (total > 0)
      for (double& part : share) part /= total;
    else  // alpha is so small that all draws are 0 in double: one device has the class
      share[static_cast<std::size_t>(numbers.uniform() * static_cast<double>(count))] = 1;
    shares.push_back(std::move(share));
  }
  auto train = deal(data.train, shares, stream.fold(1));
  auto test = deal(data.test, shares, stream.fold(2));

  droppeft::Stream order = stream.fold(3);
  for (auto& rows : train) droppeft::shuffle(std::span(rows), order);
  const auto by_size = [](const auto& a, const auto& b) { return a.size() < b.size(); };
  for (auto& poor : train)
    while (poor.size() < least) {
      auto& rich = *std::max_element(train.begin(), train.end(), by_size);
      poor.push_back(rich.back());
      rich.pop_back();
    }

  std::vector<Device> devices;
  for (std::size_t device = 0; device < count; ++device) {
    auto& rows = train[device];
    std::vector<std::size_t> back(rows.end() - static_cast<std::ptrdiff_t>(held), rows.end());
    rows.resize(rows.size() - held);
    devices.push_back({std::move(rows), std::move(back), std::move(test[device]),
                       device % speed_classes.size(), 1e6 * std::pow(100.0, numbers.uniform())});
  }
  return devices;
}
