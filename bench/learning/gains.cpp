// What each device of a round did at each of four drop rates, the same rows and the same start
// throughout: the table from which bench/learning/gains.py judges estimators of a device's gain.
//
// Plain federated rounds as federated_text plays them, up to some stages. From each stage's global
// state branch replicates: five devices are drawn and their batches; all of them train at each of
// the rates, none waiting for another (--pace device), and every aggregate is tested. So rates are
// compared on common random numbers. One more aggregate takes each device at a rate drawn for it.
//
// The table has a line for each device and rate. seconds: of its clock, full_seconds without
// dropout; step_flops, look_flops: of its steps, and of a look at its held rows before and after.
// held: on 8 rows of its own; server: on 32 rows that no device has, of the global model with the
// device's update, round_server of the aggregate; test: of the aggregate of all five at that rate.
// mixed: 1 where the mixed aggregate, of loss mixed_after, had that device at that rate. layers_j,
// head_j: inner product of the update with that of line j of its replicate, j at most its own line,
// or with the last step of the server (j = 20), over the adapters or over the head. Losses are
// means over rows.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <droppeft/core/module.hpp>
#include <droppeft/core/state.hpp>
#include <droppeft/dropout/gate.hpp>
#include <droppeft/dropout/layer_stack.hpp>
#include <droppeft/federated/fedavg.hpp>
#include <droppeft/federated/layer_sharing.hpp>
#include <droppeft/optim/adamw.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <droppeft/random/shuffle.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "federated_text/cost.hpp"
#include "federated_text/devices.hpp"
#include "federated_text/text_data.hpp"
#include "federated_text/training.hpp"
#include "models/bert.hpp"
#include "models/bert_files.hpp"

const char* const embedded_messages = "";  // only folders are read here

namespace {

namespace fs = std::filesystem;
using droppeft::State;
using droppeft::Stream;

constexpr const char* usage = R"(usage: gains MODEL DATA TABLE REPLICATES STAGE...

MODEL: folder of a BERT. DATA: folder with train.csv and test.csv. TABLE: CSV file; lines are added,
and replicates that are there are left out. STAGE: rounds played before the branch, ascending.
)";

constexpr std::array rates{0.0, 1.0 / 3, 2.0 / 3, 5.0 / 6};
constexpr std::size_t clients = 20, clients_per_round = 5, local_steps = 10, batch_size = 16,
                      held_rows = 8, server_rows = 32, train_rows = 6000, test_rows = 400,
                      rounds = 12;  // federated_text's default: how fast the learning rates fall

double number(std::int64_t value) { return static_cast<double>(value); }
double number(std::size_t value) { return static_cast<double>(value); }

/// A line of the table: names and values of its columns.
using Line = std::vector<std::pair<std::string, double>>;
constexpr double absent = std::numeric_limits<double>::quiet_NaN();

/// What a device is to do in a round, whatever its rate.
struct Task {
  std::size_t client;
  Stream stream;
  std::vector<std::vector<std::size_t>> batches;  // rows, one batch a step
};

/// What became of it at one rate.
struct Trained {
  State state;
  std::vector<std::size_t> active_steps;  // of each layer
  std::vector<double> losses;             // of the steps
  double flops = 0;
};

class Study {
 public:
  Study(const fs::path& model_folder, const fs::path& data_folder)
      : name_(data_folder.filename().string()),
        config_(read_bert_config(model_folder)),
        data_(load_text_data(data_folder, read_tokenizer(model_folder, config_, 64), train_rows,
                             test_rows + server_rows)),
        model_(config_, static_cast<std::int64_t>(data_.labels.size())),
        names_("encoder.layer."),
        cost_{config_, 8, sizeof(float)},
        test_(test_rows),
        server_(server_rows) {
    droppeft::require(data_.test.size() == test_rows + server_rows, "gains: too few test rows");
    load_bert_weights(model_->bert, model_folder);
    droppeft::add_lora(*model_, {"query", "value"}, droppeft::LoraOptions(8).alpha(16));
    droppeft::freeze(*model_->head, false);
    devices_ = make_devices(data_, clients, 1, 2 * batch_size, held_rows, root_.fold(0));
    global_ = droppeft::trainable_state(*model_);
    std::iota(test_.begin(), test_.end(), std::size_t{0});
    std::iota(server_.begin(), server_.end(), test_rows);
  }

  /// One round of all devices at full depth.
  void play_round() {
    const auto tasks = draw_tasks(root_.fold(1).fold(rounds_done_));
    std::vector<Trained> trained;
    for (const Task& task : tasks) trained.push_back(train(task, 0));
    const State before = global_;
    global_ = aggregate(tasks, trained);
    last_step_ = global_ - before;
    ++rounds_done_;
    test_before_ = loss(global_, data_.test, test_);
    server_before_ = loss(global_, data_.test, server_);
  }

  std::size_t rounds_done() const { return rounds_done_; }

  /// One replicate, branched from here.
  std::vector<Line> branch(std::size_t replicate) {
    const Stream stream = root_.fold(2).fold(rounds_done_).fold(replicate);
    const auto tasks = draw_tasks(stream);
    std::vector<Evaluation> held_before;
    for (const Task& task : tasks) held_before.push_back(look(global_, task));

    std::vector<std::vector<Trained>> trained;  // of each rate, of each device
    std::vector<State> updates;
    std::vector<double> test_after, round_server_after;
    for (const double rate : rates) {
      trained.emplace_back();
      for (const Task& task : tasks) {
        trained.back().push_back(train(task, rate));
        updates.push_back(trained.back().back().state - global_);
      }
      const State round = aggregate(tasks, trained.back());
      test_after.push_back(loss(round, data_.test, test_));
      round_server_after.push_back(loss(round, data_.test, server_));
    }
    std::vector<std::size_t> mix;
    std::vector<Trained> mixed;
    Stream draw = stream.fold(clients + 1);
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      mix.push_back(static_cast<std::size_t>(draw.uniform() * number(rates.size())));
      mixed.push_back(trained[mix.back()][i]);
    }
    const double mixed_after = loss(aggregate(tasks, mixed), data_.test, test_);
    updates.push_back(last_step_);
    const auto of_layers = gram(updates, true), of_head = gram(updates, false);

    std::vector<Line> lines;
    for (std::size_t c = 0; c < rates.size(); ++c)
      for (std::size_t i = 0; i < tasks.size(); ++i) {
        const Device& device = devices_[tasks[i].client];
        const Trained& here = trained[c][i];
        const auto mean_loss = [&](std::size_t first, std::size_t end) {
          return std::accumulate(here.losses.begin() + static_cast<std::ptrdiff_t>(first),
                                 here.losses.begin() + static_cast<std::ptrdiff_t>(end), 0.0) /
                 number(end - first);
        };
        const Evaluation held_after = look(here.state, tasks[i]);
        Line line{{"stage", number(rounds_done_)},
                  {"replicate", number(replicate)},
                  {"rate", rates[c]},
                  {"device", number(i)},
                  {"examples", number(device.train.size())},
                  {"seconds", seconds(device, here.flops)},
                  {"full_seconds", seconds(device, trained[0][i].flops)},
                  {"step_flops", here.flops},
                  {"look_flops", 2 * look_flops(device)},
                  {"held_before", held_before[i].loss},
                  {"held_after", held_after.loss},
                  {"right_before", held_before[i].accuracy()},
                  {"right_after", held_after.accuracy()},
                  {"train_first", mean_loss(0, 1)},
                  {"train_early", mean_loss(0, local_steps / 2)},
                  {"train_late", mean_loss(local_steps / 2, local_steps)},
                  {"train_last", mean_loss(local_steps - 1, local_steps)},
                  {"server_before", server_before_},
                  {"server_after", loss(here.state, data_.test, server_)},
                  {"round_server_after", round_server_after[c]},
                  {"test_before", test_before_},
                  {"test_after", test_after[c]},
                  {"mixed", mix[i] == c ? 1.0 : 0.0},
                  {"mixed_after", mixed_after}};
        const std::size_t own = c * tasks.size() + i;
        for (const auto& [block, products] : {std::pair("layers", &of_layers), {"head", &of_head}})
          for (std::size_t j = 0; j < updates.size(); ++j)
            line.emplace_back(std::string(block) + '_' + std::to_string(j),
                              j <= own || j + 1 == updates.size() ? (*products)[own][j] : absent);
        lines.push_back(std::move(line));
      }
    return lines;
  }

  const std::string& name() const { return name_; }

 private:
  std::vector<Task> draw_tasks(const Stream& stream) const {
    std::vector<std::size_t> drawn(devices_.size());
    std::iota(drawn.begin(), drawn.end(), std::size_t{0});
    Stream order = stream.fold(0);
    droppeft::shuffle(std::span(drawn), order);
    std::vector<Task> tasks;
    for (std::size_t i = 0; i < clients_per_round; ++i) {
      const Stream own = stream.fold(1 + drawn[i]);
      tasks.push_back({drawn[i], own,
                       training_batches(data_.train, devices_[drawn[i]].train, batch_size,
                                        local_steps, own.fold(0))});
    }
    return tasks;
  }

  /// As in federated_text: AdamW, a fixed gate, logits adjusted by the device's class shares.
  Trained train(const Task& task, double rate) {
    droppeft::load_state(*model_, global_);
    Trained result{.state = {}, .active_steps = std::vector<std::size_t>(layers()), .losses = {}};
    const double decay = 1 - 0.9 * number(rounds_done_) / number(rounds);
    std::vector<torch::optim::OptimizerParamGroup> groups;
    const auto group = [&](std::vector<at::Tensor> parameters, double learning_rate) {
      groups.emplace_back(std::move(parameters),
                          std::make_unique<torch::optim::AdamWOptions>(
                              torch::optim::AdamWOptions(learning_rate * decay).weight_decay(0)));
    };
    group(droppeft::trainable_parameters(*model_->head), 5e-3);
    group(droppeft::trainable_parameters(*model_->bert), 2e-3);
    droppeft::AdamW optimizer(groups);
    at::Tensor counts = at::ones({static_cast<std::int64_t>(data_.labels.size())});
    for (const auto row : devices_[task.client].train) counts[data_.train[row].label] += 1;
    const at::Tensor adjustment = (counts / counts.sum()).log();
    const std::vector<double> drop_rates(layers(), rate);
    model_->train();
    for (std::size_t step = 0; step < task.batches.size(); ++step) {
      const Batch batch = make_batch(data_.train, task.batches[step]);
      const droppeft::Plan plan = droppeft::FixedGate()(drop_rates, task.stream.fold(1).fold(step));
      const droppeft::PlanScope scope(*model_, plan);
      const at::Tensor loss =
          at::cross_entropy_loss(model_->forward(batch.ids, batch.mask) + adjustment, batch.labels);
      optimizer.zero_grad();
      loss.backward();
      optimizer.step();
      result.losses.push_back(loss.item<double>());
      result.flops += (cost_.forward(batch) + cost_.backward(batch)) * number(plan.active_count());
      for (std::size_t layer = 0; layer < layers(); ++layer)
        result.active_steps[layer] += static_cast<std::size_t>(plan.active(layer));
    }
    optimizer.zero_grad();
    result.state = droppeft::trainable_state(*model_);
    return result;
  }

  /// FedAvg, each layer weighted by the steps in which it was active too, as in federated_text.
  State aggregate(const std::vector<Task>& tasks, const std::vector<Trained>& trained) const {
    droppeft::FedAvg average;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const double examples = number(devices_[tasks[i].client].train.size());
      average.add(droppeft::layer_part(trained[i].state, names_, {}, /*outside=*/true), examples);
      for (std::size_t layer = 0; layer < layers(); ++layer)
        if (const auto steps = trained[i].active_steps[layer]; steps > 0)
          average.add(droppeft::layer_part(trained[i].state, names_, std::span(&layer, 1), false),
                      examples * number(steps) / number(local_steps));
    }
    return global_.updated(average.value());
  }

  double loss(const State& state, const std::vector<Example>& examples,
              const std::vector<std::size_t>& rows) {
    droppeft::load_state(*model_, state);
    return evaluate(model_, examples, rows).loss;
  }

  Evaluation look(const State& state, const Task& task) {
    droppeft::load_state(*model_, state);
    return evaluate(model_, data_.train, devices_[task.client].held);
  }

  double look_flops(const Device& device) const {
    return number(layers()) * cost_.forward(make_batch(data_.train, device.held));
  }

  double seconds(const Device& device, double flops) const {
    return flops / device.speed_class().flops + 8 * 2 * number(global_.nbytes()) / device.bandwidth;
  }

  /// Inner products of the updates, over the parameters of the layers or the others.
  std::vector<std::vector<double>> gram(const std::vector<State>& updates, bool of_layers) const {
    std::vector<at::Tensor> rows;
    for (const State& update : updates) {
      std::vector<at::Tensor> parts;
      for (const auto& [parameter, tensor] : update)
        if (names_(parameter).has_value() == of_layers) parts.push_back(tensor.reshape(-1));
      rows.push_back(at::cat(parts));
    }
    const at::Tensor all = at::stack(rows).to(at::kDouble);
    const at::Tensor product = at::mm(all, all.t());
    std::vector<std::vector<double>> products;
    for (std::int64_t i = 0; i < product.size(0); ++i) {
      const double* row = product.data_ptr<double>() + i * product.size(1);
      products.emplace_back(row, row + product.size(1));
    }
    return products;
  }

  std::size_t layers() const { return static_cast<std::size_t>(config_.layers); }

  std::string name_;
  BertConfig config_;
  TextData data_;
  TextClassifier model_;
  droppeft::LayerNames names_;
  LayerCost cost_;
  Stream root_{0};
  std::vector<std::size_t> test_, server_;
  std::vector<Device> devices_;
  State global_, last_step_;
  double test_before_ = 0, server_before_ = 0;  // losses of global_
  std::size_t rounds_done_ = 0;
};

/// "set,stage,replicate," of the lines that are there.
std::set<std::string> recorded(const fs::path& table) {
  std::set<std::string> keys;
  std::ifstream file(table);
  for (std::string line; std::getline(file, line);) {
    std::size_t end = 0;
    for (int comma = 0; comma < 3; ++comma) end = line.find(',', end) + 1;
    keys.insert(line.substr(0, end));
  }
  return keys;
}

void record(const fs::path& model, const fs::path& data, const fs::path& table,
            std::size_t replicates, const std::vector<std::size_t>& stages) {
  const auto done = recorded(table);
  std::ofstream out(table, std::ios::app);
  out.precision(5);
  bool titled = !done.empty();
  torch::manual_seed(0);  // of the head and the adapters
  Study study(model, data);
  for (const std::size_t stage : stages) {
    while (study.rounds_done() < stage) study.play_round();
    for (std::size_t replicate = 0; replicate < replicates; ++replicate) {
      const std::string key =
          study.name() + ',' + std::to_string(stage) + ',' + std::to_string(replicate) + ',';
      if (done.contains(key)) continue;
      std::cout << key << std::endl;
      const auto lines = study.branch(replicate);
      if (!titled) {
        out << "set";
        for (const auto& [column, value] : lines[0]) out << ',' << column;
        out << '\n';
        titled = true;
      }
      for (const Line& line : lines) {
        out << study.name();
        for (const auto& [column, value] : line)
          if (out << ','; !std::isnan(value)) out << value;
        out << '\n';
      }
      out.flush();
    }
  }
}

}  // namespace

int main(int count, char** arguments) try {
  droppeft::check(count >= 6, usage);
  at::set_num_threads(1);  // products, and so the table, depend on it
  std::vector<std::size_t> stages;
  for (int i = 5; i < count; ++i) stages.push_back(std::stoul(arguments[i]));
  droppeft::check(stages.front() >= 1 && std::ranges::is_sorted(stages), usage);
  record(arguments[1], arguments[2], arguments[3], std::stoul(arguments[4]), stages);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 2;
}
