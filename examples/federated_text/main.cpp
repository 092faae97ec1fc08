// Fine-tunes a pretrained text encoder across simulated devices, with layer dropout (DropPEFT) or
// without (federated LoRA), and measures accuracy, time, memory and bytes.

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <iostream>
#include <string>
#include <system_error>
#include <vector>

#include "choosers.hpp"
#include "federation.hpp"
#include "report.hpp"
#include "settings.hpp"
#include "text_data.hpp"

namespace {

namespace fs = std::filesystem;

/// Reads the command line; throws std::invalid_argument for a value out of range.
Settings parse(CLI::App& app, int argc, char** argv) {
  Settings s;
  if (const char* model = std::getenv("DROPPEFT_MODEL_DIR")) s.model = model;
  const auto option = [&](const char* name, auto& value, const std::string& text) {
    app.add_option(name, value, text)->capture_default_str();
  };
  option("--method", s.method, "droppeft, or fedlora: plain federated LoRA");
  app.add_flag("--compare", s.compare,
               "fedlora, then droppeft, on one split and seed; one picture");
  option("--model", s.model,
         "folder of a Hugging Face BERT: config.json, model.safetensors, vocab.txt (default: "
         "$DROPPEFT_MODEL_DIR)");
  option("--data", s.data,
         "folder with train.csv and test.csv (label,text), another file is not read; default: "
         "built-in messages");
  option("--out", s.out,
         "folder for metrics.jsonl, summary.json, accuracy.png, choices.png (what was played and "
         "believed), adapter.safetensors");
  app.add_flag("--resume", s.resume, "go on from the checkpoint in --out; begin if there is none");
  app.add_flag("--overwrite", s.overwrite,
               "replace the run in --out, which is there until the first round is done");
  option("--rounds", s.rounds,
         "rounds at most; with --compare droppeft may play six times as many in fedlora's time");
  option("--sim-seconds", s.sim_seconds, "end after so many simulated seconds; 0: no limit");
  option("--clients", s.clients, "devices");
  option("--clients-per-round", s.clients_per_round, "devices that train in a round");
  option("--alpha", s.alpha,
         "each class is dealt to the devices by Dirichlet(alpha); small: unlike");
  option("--local-steps", s.local_steps, "training steps of a device in a round");
  option("--batch", s.batch, "texts a step");
  option("--max-length", s.max_length, "tokens a text, the rest is cut");
  option("--rank", s.rank,
         "rank of the adapters on query and value (alpha is twice the rank); 0: head only");
  option("--dtype", s.dtype,
         "fp32, or bf16: of the frozen model; adapters and head are fp32. The simulated seconds "
         "remain those of fp32");
  option("--learning-rate", s.learning_rate,
         "of the adapters in the first round; falls towards a tenth");
  option("--head-learning-rate", s.head_learning_rate, "of the head, likewise");
  option("--server-momentum", s.server_momentum, "beta of FedAvgM, in [0, 1); 0: FedAvg");
  option("--logit-adjustment", s.logit_adjustment,
         "times the log of the device's class shares, added to the logits in training; 0: none");
  option("--drop-rate", s.drop_rate,
         "mean share of layers dropped, in [0, 0.95], with --pace round by the slowest device and "
         "less by the others, and if you like its shape over the depth, as in 0.5:incremental; "
         "auto: what --selector chooses");
  option("--gate", s.gate,
         "fixed: k layers a step; bernoulli: each layer by itself, as in the paper");
  option(
      "--pace", s.pace,
      "round: a configuration sets how long the round would take if all had it, and a device drops "
      "only as much as that takes; device: as much as its configuration says, as in the paper");
  std::string bandits;
  for (const NamedSelector& each : named_selectors)
    bandits += (bandits.empty() ? "" : ", ") + std::string(each.name);
  option("--selector", s.selector,
         "who chooses: pace, which knows what a pace costs and learns what it gains; paper, a "
         "population of configurations, one a device; shared-thompson, a bandit a device, whose "
         "prior its speed class shares; or one bandit on a grid of them: " +
             bandits);
  option("--space", s.space,
         "what is chosen from, beside no dropout: mean rates, and for a bandit shapes over the "
         "depth, as in 0.33,0.67:uniform,incremental; empty: the default grid");
  option(
      "--reward", s.reward,
      "gain of a device: agreement, how far its update goes the way of the others'; step, how far "
      "its adapters go the way of the server's last step; loss, its fall on rows held back; "
      "accuracy, its rise, as in the paper");
  option(
      "--memory", s.memory,
      "MB that a slow device has for a training step beside the model's weights, middle ones "
      "have twice, fast ones four times as much: devices drop what does not fit; fedlora cannot; "
      "0: no limit");
  option("--share-layers", s.share_layers,
         "layers that a device shares, the rest is personal; 0: all");
  option("--target-accuracy", s.target_accuracy,
         "report the time to it; 0: none, with --compare fedlora's final one");
  option("--seed", s.seed, "seed of everything, from 0 to 2^64 - 1");
  option("--train-rows", s.train_rows, "use the first so many training rows; 0: all");
  option("--test-rows", s.test_rows, "use the first so many test rows; 0: all");
  option("--threads", s.threads,
         "threads; 0: as LibTorch thinks best. On a busy machine 1, or OMP_WAIT_POLICY=passive in "
         "the environment");
  app.footer("Cost model of the simulated clock: " + std::string(cost_model));
  app.parse(argc, argv);

  using droppeft::check;
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    check(value >= least, name, " must be at least ", least, ", got ", value);
  };
  const auto one_of = [](const char* name, const std::string& value,
                         const std::vector<std::string>& allowed) {
    std::string list;
    for (const auto& each : allowed) list += (list.empty() ? "" : ", ") + each;
    check(std::find(allowed.begin(), allowed.end(), value) != allowed.end(), name,
          " must be one of ", list, "; got '", value, "'");
  };
  one_of("--method", s.method, {"droppeft", "fedlora"});
  one_of("--pace", s.pace, {"round", "device"});
  one_of("--dtype", s.dtype, {"fp32", "bf16"});
  one_of("--gate", s.gate, {"fixed", "bernoulli"});
  one_of("--selector", s.selector, selector_names());
  one_of("--reward", s.reward, {"agreement", "step", "loss", "accuracy"});
  if (s.drop_rate != "auto") fixed_configuration(s.drop_rate);
  configurations_of(s.space);
  check(!s.compare || app.count("--method") == 0,
        "--compare plays both methods and cannot be given with --method ", s.method);
  const auto without_effect = [&](const std::vector<const char*>& names, const std::string& why) {
    for (const char* name : names)
      check(app.count(name) == 0, name, " has no effect with ", why, ": leave one of them out");
  };
  if (s.method == "fedlora" && !s.compare)
    without_effect(
        {"--drop-rate", "--gate", "--pace", "--selector", "--space", "--reward", "--memory"},
        "--method fedlora");
  if (s.drop_rate != "auto") {
    without_effect({"--selector", "--space"}, "--drop-rate " + s.drop_rate);
    check(s.reward == "step" || s.reward == "agreement", "--reward ", s.reward,
          " needs --drop-rate auto: rows are held back for a chooser only");
  }
  check(!s.resume || !s.overwrite, "--resume and --overwrite exclude each other");
  check(s.selector != "pace" || s.space.find(':') == std::string::npos,
        "--selector pace takes no shapes in --space, got '", s.space, "'");
  if (s.selector == "paper") without_effect({"--space"}, "--selector paper");
  check(s.selector != "pace" || s.pace == "round" || s.drop_rate != "auto",
        "--selector pace chooses for --pace round; with --pace device it must be another");
  at_least("--rounds", s.rounds, 1);
  check(std::isfinite(s.sim_seconds) && s.sim_seconds >= 0,
        "--sim-seconds must be finite and at least 0, got ", s.sim_seconds);
  at_least("--clients", s.clients, 1);
  at_least("--clients-per-round", s.clients_per_round, 1);
  check(s.clients_per_round <= s.clients, "--clients-per-round must be at most --clients, ",
        s.clients, ", got ", s.clients_per_round);
  check(s.alpha > 0 && s.alpha <= 1e6, "--alpha must be above 0 and at most 1e6, got ", s.alpha);
  check(s.clients_per_round >= 2 || s.drop_rate != "auto" || (s.method == "fedlora" && !s.compare),
        "--clients-per-round must be at least 2 with --drop-rate auto, which compares the devices "
        "of a round, got ",
        s.clients_per_round);
  at_least("--local-steps", s.local_steps, 1);
  at_least("--batch", s.batch, 1);
  at_least("--max-length", s.max_length, 3);
  at_least("--rank", s.rank, 0);
  const auto* seed = app.get_option("--seed");
  check(seed->empty() || seed->as<std::string>().find('-') == std::string::npos,
        "--seed must be from 0 to 2^64 - 1, got ", seed->empty() ? "" : seed->as<std::string>());
  for (const auto& [name, rate] : {std::pair("--learning-rate", s.learning_rate),
                                   std::pair("--head-learning-rate", s.head_learning_rate)})
    check(std::isfinite(rate) && rate > 0, name, " must be positive and finite, got ", rate);
  check(s.server_momentum >= 0 && s.server_momentum < 1,
        "--server-momentum must be in [0, 1), got ", s.server_momentum);
  check(std::isfinite(s.logit_adjustment) && s.logit_adjustment >= 0,
        "--logit-adjustment must be finite and at least 0, got ", s.logit_adjustment);
  check(std::isfinite(s.memory) && s.memory >= 0, "--memory must be finite and at least 0 MB, got ",
        s.memory);
  check(s.memory == 0 || s.gate == "fixed",
        "--memory needs --gate fixed: with bernoulli all layers may be active in a step");
  at_least("--share-layers", s.share_layers, 0);
  check(s.target_accuracy >= 0 && s.target_accuracy <= 1,
        "--target-accuracy must be in [0, 1], got ", s.target_accuracy);
  at_least("--train-rows", s.train_rows, 0);
  at_least("--test-rows", s.test_rows, 0);
  check(s.threads >= 0 && s.threads <= 1024, "--threads must be in [0, 1024], got ", s.threads);
  check(!s.model.empty(),
        "--model is needed: a folder with config.json, model.safetensors, vocab.txt");
  return s;
}

void write_adapter(const fs::path& path, const Federation& federation, const Settings& settings,
                   const TextData& data) {
  const nlohmann::json about{{"base", federation.base()},
                             {"labels", data.labels},
                             {"rank", settings.rank},
                             {"max_length", settings.max_length}};
  droppeft::save_safetensors(path, federation.global(), {{"federated_text", about.dump()}});
}

/// Refuses a folder that holds a run, unless the user said what is to become of it.
void check_out(const Settings& settings, const fs::path& folder) {
  for (const char* file : {"checkpoint.safetensors", "summary.json"})
    droppeft::require(settings.resume || settings.overwrite || !fs::exists(folder / file),
                      "--out: ", folder.string(),
                      " holds a run already: --resume goes on with it, --overwrite replaces it");
}

/// Removes what a run has left in a folder.
void clear(const fs::path& folder, bool checkpoint_too) {
  for (const char* file :
       {"metrics.jsonl", "summary.json", "accuracy.png", "choices.png", "adapter.safetensors"})
    fs::remove(folder / file);
  if (checkpoint_too) fs::remove(folder / "checkpoint.safetensors");
}

/// Plays the rounds of one method that are still to be played, keeping `folder` up to date.
/// `begun` is called when the first of them is safe in the checkpoint and nothing else is written,
/// if an older run may have left files: with --overwrite, or where one that was stopped goes on.
Run play(const Settings& settings, const fs::path& folder, const TextData& data,
         const BertConfig& config, const std::function<void()>& begun) {
  torch::manual_seed(settings.seed);
  TextClassifier model(config, static_cast<std::int64_t>(data.labels.size()));
  load_bert_weights(model->bert, settings.model);
  Federation federation(settings, model, data);
  const auto checkpoint = folder / "checkpoint.safetensors";
  if (settings.resume) {
    const bool found = fs::exists(checkpoint);
    if (found) federation.load(checkpoint);
    std::cout << settings.method
              << (found ? " goes on after round " + std::to_string(federation.rounds_done())
                        : " begins anew: there is no " + checkpoint.string())
              << "\n";
  }

  const auto write_metrics = [&] {
    std::string text;
    for (const auto& metrics : federation.metrics()) text += nlohmann::json(metrics).dump() + "\n";
    write_file(folder / "metrics.jsonl", text);
  };
  std::error_code error;
  fs::create_directories(folder, error);
  droppeft::require(!error, "--out: cannot make the folder ", folder.string(), ": ",
                    error.message());
  droppeft::ReplacingFile{folder / "metrics.jsonl"};  // throws where nothing can be written
  {
    Console console(settings.method);
    for (bool first = true; federation.share_done() < 1; first = false) {
      const double behind = federation.share_done();
      const auto& metrics = federation.play_round([&](std::int64_t done, std::int64_t all) {
        const auto rounds = static_cast<double>(federation.rounds_done());
        const double next = rounds > 0 ? behind / rounds : 1 / static_cast<double>(settings.rounds);
        console.step(federation.rounds_done() + 1,
                     behind + next * static_cast<double>(done) / static_cast<double>(all));
      });
      federation.save(checkpoint);
      if (first && (settings.overwrite || federation.rounds_done() > 1)) begun();
      write_metrics();
      console.round(metrics);
    }
  }
  write_metrics();
  write_adapter(folder / "adapter.safetensors", federation, settings, data);
  Run run{.settings = settings, .metrics = federation.metrics()};
  for (const auto& parameter : model->parameters())
    if (!parameter.requires_grad())
      run.resident_bytes += static_cast<std::int64_t>(parameter.nbytes());
  return run;
}

void write_summary(const Run& run, const fs::path& folder) {
  write_file(folder / "summary.json", summarise(run).dump(2) + "\n");
}

void print_comparison(const nlohmann::json& fedlora, const nlohmann::json& droppeft) {
  const auto row = [&](const char* name, const char* key, double unit, const char* format) {
    const auto cell = [&](const nlohmann::json& value) {
      if (value.is_null()) return std::string("not reached");
      char text[32];
      std::snprintf(text, sizeof text, format, value.get<double>() / unit);
      return std::string(text);
    };
    const auto &a = fedlora.at(key), &b = droppeft.at(key);
    std::cout << std::left << std::setw(34) << name << std::right << std::setw(12) << cell(a)
              << std::setw(12) << cell(b);
    if (!a.is_null() && !b.is_null() && a.get<double>() > 0)
      std::cout << std::setw(9) << std::llround(100 * b.get<double>() / a.get<double>()) << "%";
    std::cout << "\n";
  };
  std::cout << "\n"
            << std::left << std::setw(34) << "" << std::right << std::setw(12) << "fedlora"
            << std::setw(12) << "droppeft" << std::setw(10) << "share"
            << "\n";
  row("accuracy (mean of the last rounds)", "final_accuracy", 1, "%.3f");
  row("the same on devices' own texts", "final_personal_accuracy", 1, "%.3f");
  row("target accuracy", "target_accuracy", 1, "%.3f");
  row("simulated seconds to target", "sim_seconds_to_target", 1, "%.1f");
  row("wall seconds to target", "wall_seconds_to_target", 1, "%.1f");
  row("MB up and down to target", "bytes_to_target", 1e6, "%.2f");
  row("peak MB of training, any device", "peak_bytes", 1e6, "%.1f");
  row("mean peak MB of training, slow", "slow_peak_bytes", 1e6, "%.1f");
  row("  and with the model's weights", "slow_peak_and_resident_bytes", 1e6, "%.1f");
  row("simulated seconds, all rounds", "sim_seconds", 1, "%.1f");
  row("wall seconds, all rounds", "wall_seconds", 1, "%.1f");
}

void federated_text(const Settings& settings) {
  const auto plain_folder = settings.out / "fedlora", dropped_folder = settings.out / "droppeft";
  const std::vector<fs::path> folders =
      settings.compare ? std::vector{settings.out, plain_folder, dropped_folder}
                       : std::vector{settings.out};
  for (const auto& folder : folders) check_out(settings, folder);
  const auto clear_all = [&] {
    const auto& first_played = settings.compare ? plain_folder : settings.out;  // has a new one
    for (const auto& folder : folders) clear(folder, /*checkpoint_too=*/folder != first_played);
  };
  if (settings.threads > 0) at::set_num_threads(static_cast<int>(settings.threads));
  const BertConfig config = read_bert_config(settings.model);
  droppeft::check(settings.share_layers <= config.layers, "--share-layers must be at most ",
                  config.layers, ", got ", settings.share_layers);
  droppeft::check(settings.rank <= config.width, "--rank must be at most the model's width, ",
                  config.width, ", got ", settings.rank);
  droppeft::check(settings.max_length <= config.positions, "--max-length must be at most ",
                  config.positions, ", got ", settings.max_length);
  const auto tokenizer =
      read_tokenizer(settings.model, config, static_cast<std::size_t>(settings.max_length));
  const TextData data =
      load_text_data(settings.data, tokenizer, static_cast<std::size_t>(settings.train_rows),
                     static_cast<std::size_t>(settings.test_rows));
  std::cout << data.train.size() << " training and " << data.test.size() << " test texts of "
            << data.labels.size() << " classes; " << settings.clients << " devices; "
            << at::get_num_threads() << " threads, " << at::get_cpu_capability() << std::endl;

  if (!settings.compare) {
    Run run = play(settings, settings.out, data, config, clear_all);
    run.target = settings.target_accuracy;
    write_summary(run, settings.out);
    draw(settings.out / "accuracy.png", {run});
    draw_choices(settings.out / "choices.png", run.metrics);
    std::cout << "wrote " << (settings.out / "summary.json").string() << "\n";
    return;
  }
  Settings fedlora = settings, droppeft = settings;
  fedlora.method = "fedlora";
  droppeft.method = "droppeft";
  Run plain = play(fedlora, plain_folder, data, config, clear_all);
  const double all_seconds = plain.metrics.back().sim_seconds;
  droppeft.rounds = 6 * settings.rounds;
  droppeft.sim_seconds = all_seconds;
  Run dropped = play(droppeft, dropped_folder, data, config, [] {});
  // A round that ends late does not count.
  while (dropped.metrics.size() > 1 && dropped.metrics.back().sim_seconds > all_seconds)
    dropped.metrics.pop_back();
  // Both are smoothed over the time of three of fedlora's rounds, droppeft's being shorter.
  dropped.smoothing_seconds = 3 * all_seconds / static_cast<double>(plain.metrics.size());
  plain.target = dropped.target =
      settings.target_accuracy > 0 ? settings.target_accuracy : plain.final_accuracy();
  write_summary(plain, plain_folder);
  write_summary(dropped, dropped_folder);
  const auto a = summarise(plain), b = summarise(dropped);
  write_file(settings.out / "summary.json",
             nlohmann::json{{"fedlora", a}, {"droppeft", b}}.dump(2) + "\n");
  print_comparison(a, b);
  draw(plain_folder / "accuracy.png", {plain});
  draw(dropped_folder / "accuracy.png", {dropped});
  draw_choices(dropped_folder / "choices.png", dropped.metrics);
  draw(settings.out / "accuracy.png", {plain, dropped});
  std::cout << "\nwrote " << (settings.out / "accuracy.png").string() << " and summary.json\n";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Fine-tunes a text encoder across simulated devices with layer dropout.",
               "federated_text");
  try {
    federated_text(parse(app, argc, argv));
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    std::string message = error.what();
    std::cerr << "federated_text: " << message.substr(0, message.find('\n'))
              << "\nSee federated_text --help.\n";
    return 2;
  }
}
