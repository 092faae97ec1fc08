#pragma once

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <droppeft/configurator.hpp>
#include <droppeft/core/module.hpp>
#include <droppeft/core/state.hpp>
#include <droppeft/dropout/gate.hpp>
#include <droppeft/federated/agreement.hpp>
#include <droppeft/federated/budget.hpp>
#include <droppeft/federated/fedavg.hpp>
#include <droppeft/federated/layer_sharing.hpp>
#include <droppeft/federated/length_along.hpp>
#include <droppeft/federated/pace.hpp>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/memory/meter.hpp>
#include <droppeft/optim/adamw.hpp>
#include <droppeft/pace_configurator.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <droppeft/random/shuffle.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "choosers.hpp"
#include "cost.hpp"
#include "devices.hpp"
#include "models/bert.hpp"
#include "models/bert_files.hpp"
#include "settings.hpp"
#include "text_data.hpp"
#include "training.hpp"

/// What was believed of a configuration, or a pace, after a round: a 95 % interval of its worth, in
/// the unit of whoever chose, and how many reports it rests on.
struct Belief {
  std::string name;
  double worth = 0, half_width = 0, reports = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Belief, name, worth, half_width, reports)

/// A line of metrics.jsonl. Seconds and bytes are sums since the start, peak_bytes is the highest;
/// loss is that of training. The lists have an element for each device of the round: rates are
/// means over layers, gains what --reward says (none for a device alone), layer and other seconds
/// what the round costs it at full depth, as a RoundCost; played has a configuration for each, or
/// the pace of all, where something chooses, and beliefs what that thinks of all it may choose.
struct RoundMetrics {
  std::int64_t round = 0;
  double sim_seconds = 0, wall_seconds = 0;
  double accuracy = 0, personal_accuracy = 0, loss = 0, test_loss = 0;
  std::vector<double> drop_rates, gains, layer_seconds, other_seconds;
  std::vector<std::string> device_classes, played;
  std::vector<Belief> beliefs;
  std::vector<std::int64_t> device_peak_bytes;
  std::int64_t peak_bytes = 0, bytes_up = 0, bytes_down = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RoundMetrics, round, sim_seconds, wall_seconds, accuracy,
                                   personal_accuracy, loss, test_loss, drop_rates, gains,
                                   layer_seconds, other_seconds, device_classes, played, beliefs,
                                   device_peak_bytes, peak_bytes, bytes_up, bytes_down)

/// A simulated federation: one frozen encoder, of which every device sees the whole, and an adapter
/// state for each device that keeps some layers for itself. The encoder is given in fp32 and
/// brought to --dtype; adapters and head are fp32.
class Federation {
 public:
  /// `step` is told after each local step how many of the round's are done, and how many there are.
  using Progress = std::function<void(std::int64_t done, std::int64_t all)>;

  Federation(const Settings& settings, TextClassifier model, const TextData& data)
      : settings_(settings),
        model_(std::move(model)),
        data_(data),
        root_(settings.seed),
        layer_names_("encoder.layer."),
        inputs_{{"model", base_fingerprint(model_)}, {"data", fingerprint(data)}},
        cost_{model_->config, settings.rank, at::elementSize(base_dtype(settings))} {
    model_->bert->to(base_dtype(settings));
    if (settings.rank > 0)
      droppeft::add_lora(*model_, {"query", "value"},
                         droppeft::LoraOptions(settings.rank).alpha(2.0 * number(settings.rank)));
    else
      droppeft::freeze(*model_);
    droppeft::freeze(*model_->head, false);
    const auto batch = static_cast<std::size_t>(settings.batch);
    devices_ = make_devices(data, static_cast<std::size_t>(settings.clients), settings.alpha,
                            2 * batch, holds() ? std::max<std::size_t>(batch / 2, 1) : 0,
                            root_.fold(stream_of_split));
    personal_.resize(devices_.size());
    global_ = droppeft::trainable_state(*model_);
    std::vector<std::size_t> classes;
    for (const Device& device : devices_) {
      classes.push_back(device.speed);
      least_rates_.push_back(least_rate(device));
    }
    configurator_.emplace(make_configurator(settings.selector, settings.space, classes,
                                            root_.fold(stream_of_configurator)));
  }

  std::int64_t rounds_done() const { return static_cast<std::int64_t>(metrics_.size()); }

  /// How much of the run is behind: 1 or more when its rounds or its simulated seconds are used up.
  double share_done() const {
    const double rounds = number(rounds_done()) / number(settings_.rounds);
    if (settings_.sim_seconds == 0 || metrics_.empty()) return rounds;
    return std::max(rounds, metrics_.back().sim_seconds / settings_.sim_seconds);
  }

  const std::vector<RoundMetrics>& metrics() const { return metrics_; }

  /// The fingerprint of the frozen encoder as it was given, in fp32.
  const std::string& base() const { return inputs_.at("model"); }

  /// The adapters and the head that the devices share.
  const droppeft::State& global() const { return global_; }

  /// Plays one round and evaluates: clients train, the server averages, everybody is tested.
  const RoundMetrics& play_round(const Progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    RoundMetrics now = metrics_.empty() ? RoundMetrics{} : metrics_.back();
    ++now.round;
    now.loss = 0;
    now.drop_rates.clear();
    now.layer_seconds.clear();
    now.other_seconds.clear();
    now.device_classes.clear();
    now.played.clear();
    now.device_peak_bytes.clear();
    const droppeft::Stream stream =
        root_.fold(stream_of_rounds).fold(number<std::uint64_t>(now.round));
    std::vector<Task> tasks;
    for (const auto client : sample_participants(stream.fold(0)))
      tasks.push_back(make_task(client, stream.fold(1 + client)));
    const auto assignments = set_rates(tasks, now.played);

    std::vector<Sent> received;
    std::vector<double> weights;
    droppeft::FedAvg average;
    double slowest = 0;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const auto done = static_cast<std::int64_t>(i) * settings_.local_steps;
      received.push_back(train(tasks[i], learning_rate_decay(), [&](std::int64_t step) {
        progress(done + step, settings_.clients_per_round * settings_.local_steps);
      }));
      const Sent& sent = received.back();
      weights.push_back(static_cast<double>(devices_[tasks[i].client].train.size()));
      add(average, sent, weights.back());
      slowest = std::max(slowest, sent.seconds);
      now.loss += sent.loss / static_cast<double>(tasks.size());
      now.drop_rates.push_back(mean(tasks[i].drop_rates));
      now.layer_seconds.push_back(tasks[i].cost.layer_seconds);
      now.other_seconds.push_back(tasks[i].cost.other_seconds);
      now.device_classes.emplace_back(devices_[tasks[i].client].speed_class().name);
      now.device_peak_bytes.push_back(sent.peak_bytes);
      now.peak_bytes = std::max(now.peak_bytes, sent.peak_bytes);
      now.bytes_up += sent.shared.nbytes();
      now.bytes_down += sent.bytes_down;
    }
    now.gains = gains_of(received, weights);
    if (adaptive()) {
      report(assignments, tasks, received, now.gains);
      now.beliefs = beliefs();
    }
    const droppeft::State before = global_;
    global_ = global_.updated(server_step(average.value()));
    last_step_ = global_ - before;
    if (settings_.rank > 0) last_step_ = layers_of(last_step_);
    now.sim_seconds += slowest;

    test(now);
    now.wall_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    metrics_.push_back(now);
    return metrics_.back();
  }

  /// Writes everything that the next round depends on to one file, which is replaced as a whole.
  void save(const std::filesystem::path& path) const {
    droppeft::State state;
    for (const auto& [name, tensor] : global_) state.insert("global/" + name, tensor);
    for (const auto& [name, tensor] : velocity_) state.insert("velocity/" + name, tensor);
    for (const auto& [name, tensor] : last_step_) state.insert("last step/" + name, tensor);
    for (std::size_t client = 0; client < personal_.size(); ++client)
      for (const auto& [name, tensor] : personal_[client])
        state.insert("client " + std::to_string(client) + "/" + name, tensor);
    nlohmann::json json{{"settings", settings_}, {"inputs", inputs_}, {"metrics", metrics_}};
    json["configurator"] =
        std::visit([](const auto& configurator) { return configurator.save(); }, *configurator_);
    droppeft::save_safetensors(path, state, {{"federated_text checkpoint", json.dump()}});
  }

  /// Goes on from such a file. Throws std::runtime_error when it belongs to a run of other
  /// settings, or of another model or other data.
  void load(const std::filesystem::path& path) {
    std::map<std::string, std::string> metadata;
    const droppeft::State state = droppeft::load_safetensors(path, &metadata);
    const auto json = nlohmann::json::parse(metadata["federated_text checkpoint"], nullptr, false);
    droppeft::require(json.is_object(), path.string(), " is not a checkpoint of federated_text");
    const nlohmann::json mine = settings_;
    for (const auto& [key, value] : mine.items()) {
      const auto theirs =
          json.value("settings", nlohmann::json::object()).value(key, nlohmann::json());
      droppeft::require(theirs == value, "--resume: ", path.string(), " was made with ", key, " = ",
                        theirs.dump(), ", not ", value.dump());
    }
    for (const auto& [input, fingerprint] : inputs_)
      droppeft::require(
          json.value("inputs", nlohmann::json::object()).value(input, "") == fingerprint,
          "--resume: ", path.string(), " was made with another --", input);
    try {
      const auto part = [&](const std::string& prefix) {
        droppeft::State found;
        for (const auto& [name, tensor] : state)
          if (name.starts_with(prefix)) found.insert(name.substr(prefix.size()), tensor.clone());
        return found;
      };
      const droppeft::State global = part("global/");
      global.check_same_layout(global_);
      auto metrics = json.at("metrics").get<std::vector<RoundMetrics>>();
      std::visit([&](auto& configurator) { configurator.load(json.at("configurator")); },
                 *configurator_);
      global_ = global;
      velocity_ = part("velocity/");
      last_step_ = part("last step/");
      for (std::size_t client = 0; client < personal_.size(); ++client)
        personal_[client] = part("client " + std::to_string(client) + "/");
      metrics_ = std::move(metrics);
    } catch (const std::exception& error) {
      droppeft::require(false, "--resume: ", path.string(), " is damaged: ", error.what());
    }
  }

 private:
  // What the parts of a run draw from: root.fold(one of these).
  enum : std::uint64_t { stream_of_split, stream_of_configurator, stream_of_rounds };

  /// What a device is to do in a round.
  struct Task {
    std::size_t client;
    droppeft::Stream stream;
    std::vector<std::vector<std::size_t>> batches;  // rows, one batch a step
    droppeft::RoundCost cost;                       // as far as it is known beforehand
    std::vector<double> drop_rates{};
    double share_of_longest = 1;  // seconds of the round at this pace over those of the longest one
  };

  /// What a device sends after its local steps, and what they cost.
  struct Sent {
    droppeft::State shared, update;         // the update: what is shared minus what it was before
    std::vector<std::size_t> active_steps;  // of each layer
    double loss = 0;                        // mean over the steps
    double gain = 0;                        // on the rows held back
    double seconds = 0;                     // of the device's clock
    std::int64_t peak_bytes = 0, bytes_down = 0;
  };

  static at::ScalarType base_dtype(const Settings& settings) {
    return settings.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
  }

  template <class C>
  static constexpr bool is_pace =
      std::is_same_v<std::remove_cvref_t<C>, droppeft::PaceConfigurator>;

  template <class To = double>
  static To number(std::int64_t value) {
    return static_cast<To>(value);
  }

  static double mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return values.empty() ? 0 : sum / static_cast<double>(values.size());
  }

  bool drops() const { return settings_.method == "droppeft"; }
  bool adaptive() const { return drops() && settings_.drop_rate == "auto"; }

  /// Whether rows are held back: for fedlora too, so that both methods have one split.
  bool holds() const {
    return settings_.drop_rate == "auto" &&
           (settings_.reward == "loss" || settings_.reward == "accuracy");
  }

  /// Whether a device looks at them.
  bool looks() const { return adaptive() && holds(); }
  std::size_t layers() const { return static_cast<std::size_t>(model_->config.layers); }

  std::vector<std::size_t> sample_participants(droppeft::Stream stream) const {
    std::vector<std::size_t> clients(devices_.size());
    std::iota(clients.begin(), clients.end(), std::size_t{0});
    droppeft::shuffle(std::span(clients), stream);
    clients.resize(static_cast<std::size_t>(settings_.clients_per_round));
    return clients;
  }

  /// Learning rates fall linearly with the progress of the run, towards a tenth at its end.
  double learning_rate_decay() const { return 1 - 0.9 * std::min(share_done(), 1.0); }

  Task make_task(std::size_t client, const droppeft::Stream& stream) const {
    const Device& device = devices_[client];
    Task task{client,
              stream,
              training_batches(data_.train, device.train, static_cast<std::size_t>(settings_.batch),
                               static_cast<std::size_t>(settings_.local_steps), stream.fold(0)),
              {}};
    double flops = 0;
    for (const auto& rows : task.batches) {
      const Batch batch = make_batch(data_.train, rows);
      flops += number(model_->config.layers) * (cost_.forward(batch) + cost_.backward(batch));
    }
    task.cost.layer_seconds = flops / device.speed_class().flops;
    // What it will send is not known before; layers are of one size.
    const double up =
        number(global_.nbytes()) *
        (settings_.share_layers > 0 ? number(settings_.share_layers) / number(model_->config.layers)
                                    : 1);
    task.cost.least_rate = least_rates_[client];
    task.cost.other_seconds = test_flops(device) / device.speed_class().flops +
                              8 * (number(down(client).nbytes()) + up) / device.bandwidth;
    return task;
  }

  /// What a device is sent: all that it does not have of its own.
  droppeft::State down(std::size_t client) const {
    return global_.select([&](auto name) { return !personal_[client].contains(name); });
  }

  /// Operations for a look at the held rows before and after the local steps.
  double test_flops(const Device& device) const {
    double flops = 0;
    if (!looks()) return flops;
    for (const auto& rows : batches_by_length(data_.train, device.held, 32))
      flops += 2 * number(model_->config.layers) * cost_.forward(make_batch(data_.train, rows));
    return flops;
  }

  /// The lowest mean drop rate that a device's memory holds when its longest texts fill a batch.
  double least_rate(const Device& device) const {
    if (settings_.memory == 0 || !drops()) return 0;
    std::size_t longest = 0;
    for (const auto row : device.train) longest = std::max(longest, data_.train[row].ids.size());
    const double bytes = 1e6 * settings_.memory * device.speed_class().memory;
    const droppeft::RoundCost any{.layer_seconds = 1};
    try {
      return droppeft::least_drop_rate(
          {.bytes = bytes}, any,
          cost_.step_bytes(settings_.batch, static_cast<std::int64_t>(longest), global_.nbytes()),
          layers());
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("--memory: a " + std::string(device.speed_class().name) +
                                  " device cannot take part: " + error.what());
    }
  }

  /// What the devices of a round may be assigned. With --pace round each drops what it must anyway;
  /// so does one that can hold no candidate, which is assigned one of those that drop most.
  std::vector<droppeft::DeviceRequest> requests(const std::vector<Task>& tasks,
                                                double highest) const {
    std::vector<droppeft::DeviceRequest> requests;
    for (const Task& task : tasks)
      requests.push_back({task.client, settings_.pace == "device"
                                           ? std::min(task.cost.least_rate, highest)
                                           : 0.0});
    return requests;
  }

  /// Gives each device of a round its drop rates; the assignments behind them, if there are any.
  /// With --pace round, a configuration says how long the round would take if all devices followed
  /// it, and each drops only as much as that takes.
  std::vector<Assignment> set_rates(std::vector<Task>& tasks, std::vector<std::string>& played) {
    std::vector<droppeft::RoundCost> costs;
    for (const Task& task : tasks) costs.push_back(task.cost);
    std::vector<droppeft::Configuration> configurations(tasks.size());
    std::vector<Assignment> assignments;
    if (adaptive()) {
      std::visit(
          [&](auto& configurator) {
            if constexpr (is_pace<decltype(configurator)>) {
              const droppeft::Configuration pace{.mean_rate = configurator.choose(costs)};
              std::ranges::fill(configurations, pace);
              played.push_back(to_string(pace));
            } else {
              double highest = 0;
              for (const auto& each : configurator.estimates())
                highest = std::max(highest, each.configuration.mean());
              assignments = configurator.assign(requests(tasks, highest));
            }
          },
          *configurator_);
      for (std::size_t i = 0; i < assignments.size(); ++i) {
        configurations[i] = assignments[i].configuration;
        played.push_back(to_string(configurations[i]));
      }
    } else if (drops()) {
      std::ranges::fill(configurations, fixed_configuration(settings_.drop_rate));
    }
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      double& rate = configurations[i].mean_rate;
      if (settings_.pace == "round") {
        const double deadline = droppeft::round_seconds(costs, rate);
        tasks[i].share_of_longest = deadline / droppeft::round_seconds(costs, 0);
        rate = costs[i].drop_rate(deadline);
      } else {
        rate = std::max(rate, costs[i].least_rate);
      }
      tasks[i].drop_rates = configurations[i].drop_rates(layers());
    }
    return assignments;
  }

  /// A device weighs in the average of a layer what it trained of it: its examples times the share
  /// of its steps in which the layer was active. Else devices that drop would dilute the others'
  /// updates.
  void add(droppeft::FedAvg& average, const Sent& sent, double examples) const {
    average.add(droppeft::layer_part(sent.shared, layer_names_, {}, /*outside=*/true), examples);
    for (std::size_t layer = 0; layer < layers(); ++layer)
      if (sent.active_steps[layer] > 0)
        average.add(droppeft::layer_part(sent.shared, layer_names_, std::span(&layer, 1), false),
                    examples * static_cast<double>(sent.active_steps[layer]) /
                        number(settings_.local_steps));
  }

  droppeft::State layers_of(const droppeft::State& state) const {
    return state.select([&](auto name) { return layer_names_(name).has_value(); });
  }

  /// What each device gained by --reward. Those of steps and agreements are lengths of updates, so
  /// they count layers as trained, without add()'s weights. A device alone has no agreement.
  std::vector<double> gains_of(const std::vector<Sent>& received,
                               const std::vector<double>& weights) const {
    std::vector<double> gains;
    std::vector<droppeft::State> updates;
    for (const Sent& sent : received) {
      updates.push_back(sent.update);
      gains.push_back(settings_.reward == "step" ? droppeft::length_along(sent.update, last_step_)
                                                 : sent.gain);
    }
    if (settings_.reward != "agreement") return gains;
    return received.size() > 1 ? droppeft::agreement(updates, weights) : std::vector<double>{};
  }

  /// Tells the configurator what each device gained and at which cost: of the round's seconds at
  /// the pace of its configuration the share of those of the longest round, or with --pace device
  /// of its own; the paper takes its own seconds.
  void report(const std::vector<Assignment>& assignments, const std::vector<Task>& tasks,
              const std::vector<Sent>& received, const std::vector<double>& gains) {
    const auto seconds = [&](std::size_t i) {
      if (settings_.pace == "round") return tasks[i].share_of_longest;
      if (settings_.selector == "paper") return received[i].seconds;
      return received[i].seconds / tasks[i].cost.seconds(0);
    };
    std::visit(
        [&](auto& configurator) {
          if constexpr (is_pace<decltype(configurator)>) {
            std::vector<double> rates;
            for (const Task& task : tasks) rates.push_back(mean(task.drop_rates));
            configurator.report(rates, gains);
          } else {
            for (std::size_t i = 0; i < received.size(); ++i)
              configurator.report(assignments[i], gains[i], seconds(i));
            configurator.finish_round();
          }
        },
        *configurator_);
  }

  std::vector<Belief> beliefs() const {
    std::vector<Belief> beliefs;
    std::visit(
        [&](const auto& configurator) {
          if constexpr (is_pace<decltype(configurator)>)
            for (const auto& each : configurator.beliefs())
              beliefs.push_back({to_string(droppeft::Configuration{.mean_rate = each.rate}),
                                 each.gain, 1.96 * each.sd, each.reports});
          else
            for (const auto& each : configurator.estimates())
              if (each.plays > 0) {
                // Rewards have a deviation of at most 1/4; few reports may show less.
                const double sd = std::sqrt((each.plays * std::pow(each.reward_sd, 2) + 0.0625) /
                                            (each.plays + 1));
                beliefs.push_back({to_string(each.configuration), each.mean_reward,
                                   1.96 * sd / std::sqrt(each.plays), each.plays});
              }
        },
        *configurator_);
    return beliefs;
  }

  droppeft::Plan draw_plan(const std::vector<double>& rates, droppeft::Stream stream) const {
    if (settings_.gate == "bernoulli") return droppeft::BernoulliGate()(rates, stream);
    return droppeft::FixedGate()(rates, stream);
  }

  /// log((n_c + 1) / (n + C)) for each class c of a device's training rows. Added to the logits in
  /// training, a device need not teach the shared head how common its classes are: logit adjustment
  /// (Menon et al., ICLR 2021), for devices of unlike classes (FedLC, Zhang et al., ICML 2022).
  at::Tensor log_class_shares(const Device& device) const {
    at::Tensor counts = at::ones({static_cast<std::int64_t>(data_.labels.size())});
    for (const auto row : device.train) counts[data_.train[row].label] += 1;
    return (counts / counts.sum()).log();
  }

  /// What a device's model is worth on its held rows: the loss, or the paper's accuracy, as a gain.
  double worth(const Device& device) {
    const auto result = evaluate(model_, data_.train, device.held);
    return settings_.reward == "accuracy" ? result.accuracy() : -result.loss;
  }

  Sent train(const Task& task, double decay, const std::function<void(std::int64_t)>& stepped) {
    Device& device = devices_[task.client];
    Sent sent;
    const droppeft::State& mine = personal_[task.client];
    sent.bytes_down = down(task.client).nbytes();
    const droppeft::State start = global_.updated(mine);
    droppeft::load_state(*model_, start);
    torch::manual_seed(droppeft::Stream(task.stream)());

    droppeft::MemoryMeter meter;
    double flops = test_flops(device);
    if (looks()) sent.gain -= worth(device);
    droppeft::LayerImportance importance(layer_names_, layers());
    {
      std::vector<torch::optim::OptimizerParamGroup> groups;
      const auto group = [&](std::vector<at::Tensor> parameters, double rate) {
        groups.emplace_back(std::move(parameters),
                            std::make_unique<torch::optim::AdamWOptions>(
                                torch::optim::AdamWOptions(rate * decay).weight_decay(0)));
      };
      group(droppeft::trainable_parameters(*model_->head), settings_.head_learning_rate);
      if (settings_.rank > 0)
        group(droppeft::trainable_parameters(*model_->bert), settings_.learning_rate);
      droppeft::AdamW optimizer(groups);
      const at::Tensor adjustment = settings_.logit_adjustment * log_class_shares(device);
      model_->train();

      for (std::size_t step = 0; step < task.batches.size(); ++step) {
        const Batch batch = make_batch(data_.train, task.batches[step]);
        const droppeft::Plan plan = draw_plan(task.drop_rates, task.stream.fold(1).fold(step));
        const droppeft::PlanScope scope(*model_, plan);
        const at::Tensor logits = model_->forward(batch.ids, batch.mask) + adjustment;
        const at::Tensor loss = at::cross_entropy_loss(logits, batch.labels);
        optimizer.zero_grad();
        loss.backward();
        importance.add(*model_);
        optimizer.step();
        const auto value = loss.item<double>();
        droppeft::require(std::isfinite(value), "device ", task.client, " diverged: its loss is ",
                          std::abs(value), " in step ", step + 1, " of round ", rounds_done() + 1,
                          "; try a smaller --learning-rate or --head-learning-rate");
        sent.loss += value / number(settings_.local_steps);
        flops += (cost_.forward(batch) + cost_.backward(batch)) *
                 static_cast<double>(plan.active_count());
        stepped(static_cast<std::int64_t>(step) + 1);
      }
      optimizer.zero_grad();
    }
    if (looks()) sent.gain += worth(device);
    sent.peak_bytes = meter.peak();

    const auto state = droppeft::trainable_state(*model_);
    const auto share =
        settings_.share_layers > 0 ? static_cast<std::size_t>(settings_.share_layers) : layers();
    const auto shared = droppeft::top_layers(importance.value(), share);
    sent.shared = droppeft::layer_part(state, layer_names_, shared, /*outside=*/true);
    sent.update = sent.shared - start.select([&](auto name) { return sent.shared.contains(name); });
    const auto active = importance.active_steps();
    sent.active_steps.assign(active.begin(), active.end());
    if (share < layers())
      personal_[task.client] = state.select([&](auto name) {
        const auto layer = layer_names_(name);
        return !sent.shared.contains(name) &&
               (mine.contains(name) || (layer && active[*layer] > 0));
      });

    sent.seconds = flops / device.speed_class().flops +
                   8 * number(sent.bytes_down + sent.shared.nbytes()) / device.bandwidth;
    return sent;
  }

  /// FedAvg with server momentum (FedAvgM): v <- beta v + (average - global); global <- global + v.
  droppeft::State server_step(const droppeft::State& average) {
    if (settings_.server_momentum == 0) return average;
    const auto before = global_.select([&](auto name) { return average.contains(name); });
    droppeft::State velocity = average - before;
    const auto old = velocity_.select([&](auto name) { return velocity.contains(name); });
    if (!old.empty()) {
      droppeft::State zero = 0.0 * velocity;
      velocity = velocity + settings_.server_momentum * zero.updated(old);
    }
    velocity_ = velocity_.updated(velocity);
    return before + velocity;
  }

  /// Accuracy of the shared model on the whole test set, and of each device's own on its share.
  void test(RoundMetrics& metrics) {
    std::vector<std::size_t> all(data_.test.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    droppeft::load_state(*model_, global_);
    const Evaluation shared = evaluate(model_, data_.test, all);
    metrics.accuracy = shared.accuracy();
    metrics.test_loss = shared.loss;
    double sum = 0;
    std::size_t tested = 0;
    for (std::size_t client = 0; client < devices_.size(); ++client) {
      const auto& rows = devices_[client].test;
      if (rows.empty()) continue;
      ++tested;
      if (personal_[client].empty()) {
        std::size_t right = 0;
        for (const auto row : rows) right += shared.right[row];
        sum += static_cast<double>(right) / static_cast<double>(rows.size());
      } else {
        droppeft::load_state(*model_, global_.updated(personal_[client]));
        sum += evaluate(model_, data_.test, rows).accuracy();
      }
    }
    metrics.personal_accuracy = sum / static_cast<double>(tested);
  }

  Settings settings_;
  TextClassifier model_;
  const TextData& data_;
  droppeft::Stream root_;
  droppeft::LayerNames layer_names_;
  std::map<std::string, std::string> inputs_;  // fingerprints of what a run must not change
  LayerCost cost_;
  std::vector<Device> devices_;
  std::vector<double> least_rates_;  // of the devices
  std::optional<Configurator> configurator_;
  droppeft::State global_, velocity_;
  droppeft::State last_step_;  // of the server; its adapters alone, if there are any
  std::vector<droppeft::State> personal_;
  std::vector<RoundMetrics> metrics_;
};
