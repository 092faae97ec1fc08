#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

/// What the command line of federated_text says.
struct Settings {
  std::string method = "droppeft";
  std::int64_t rounds = 12;
  double sim_seconds = 0;  // 0: no limit
  std::int64_t clients = 20;
  std::int64_t clients_per_round = 5;
  double alpha = 1.0;
  std::int64_t local_steps = 10;
  std::int64_t batch = 16;
  std::int64_t max_length = 64;
  std::int64_t rank = 8;
  std::string dtype = "fp32";
  double learning_rate = 2e-3;
  double head_learning_rate = 5e-3;
  double server_momentum = 0;
  double logit_adjustment = 1;
  std::string drop_rate = "auto";
  std::string gate = "fixed";
  std::string pace = "round";
  std::string selector = "pace";
  std::string space;  // empty: the library's own
  std::string reward = "agreement";
  double memory = 0;              // MB; 0: no limit
  std::int64_t share_layers = 0;  // 0: all
  double target_accuracy = 0;     // 0: none
  std::uint64_t seed = 0;
  std::int64_t threads = 0;     // 0: LibTorch's own choice
  std::int64_t train_rows = 0;  // 0: all
  std::int64_t test_rows = 0;   // 0: all
  std::filesystem::path model;
  std::filesystem::path data;  // empty: the embedded messages
  std::filesystem::path out = "run";
  bool resume = false;
  bool overwrite = false;
  bool compare = false;
};

/// The settings that decide the numbers of a run, as summary.json states them and --resume checks.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Settings, method, rounds, sim_seconds, clients,
                                   clients_per_round, alpha, local_steps, batch, max_length, rank,
                                   dtype, learning_rate, head_learning_rate, server_momentum,
                                   logit_adjustment, drop_rate, gate, pace, selector, space, reward,
                                   memory, share_layers, seed, train_rows, test_rows)
