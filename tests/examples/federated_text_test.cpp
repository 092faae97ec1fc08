#include <algorithm>
#include <chrono>
#include <droppeft/core/module.hpp>
#include <droppeft/core/state.hpp>
#include <droppeft/dropout/gate.hpp>
#include <droppeft/memory/meter.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "federated_text/choosers.hpp"
#include "federated_text/cost.hpp"
#include "models/bert_files.hpp"
#include "program.hpp"
#include "support.hpp"

// FEDERATED_TEXT and PREDICT are the paths of the programs, given by the build.

namespace {

struct Fixture {
  Fixture() {
    write_tiny_model(model, 1);
    write_tiny_data(data);
  }

  std::vector<std::string> command(const std::string& out, std::vector<std::string> more) const {
    std::vector<std::string> all{FEDERATED_TEXT,
                                 "--model",
                                 model.string(),
                                 "--data",
                                 data.string(),
                                 "--out",
                                 (folder.path / out).string()};
    for (const char* argument :
         {"--clients", "6", "--clients-per-round", "3", "--rounds", "4", "--batch", "4",
          "--local-steps", "3", "--max-length", "24", "--rank", "2"})
      all.emplace_back(argument);
    for (auto& argument : more) {
      const auto same = std::find(all.begin(), all.end(), argument);
      if (argument.starts_with("--") && same != all.end()) all.erase(same, same + 2);
    }
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  int run(const std::string& out, std::vector<std::string> more = {}) {
    Program program(folder.path, command(out, std::move(more)));
    const int code = program.wait();
    errors = program.errors();
    output = program.output();
    return code;
  }

  /// metrics.jsonl without the wall times.
  std::vector<nlohmann::json> metrics(const std::string& out) const {
    std::vector<nlohmann::json> metrics;
    for (const auto& line : lines_of(read_text(folder.path / out / "metrics.jsonl"))) {
      metrics.push_back(nlohmann::json::parse(line));
      metrics.back().erase("wall_seconds");
    }
    return metrics;
  }

  std::string adapter(const std::string& out) const {
    return read_text(folder.path / out / "adapter.safetensors");
  }

  TemporaryFolder folder;
  fs::path model = folder.path / "model", data = folder.path / "data";
  std::string errors, output;
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "a run writes a line of metrics a round, a summary and an adapter") {
  REQUIRE_MESSAGE(run("out", {"--target-accuracy", "0.01"}) == 0, errors);
  const auto lines = metrics("out");
  REQUIRE(lines.size() == 4);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    CHECK(lines[i].at("round") == i + 1);
    for (const char* key : {"drop_rates", "gains", "layer_seconds", "other_seconds",
                            "device_classes", "device_peak_bytes"})
      CHECK(lines[i].at(key).size() == 3);
    CHECK(lines[i].at("played").size() == 1);
    CHECK(lines[i].at("beliefs").size() == 4);
    for (const char* key : {"sim_seconds", "accuracy", "personal_accuracy", "loss", "test_loss",
                            "peak_bytes", "bytes_up", "bytes_down"})
      CHECK(lines[i].at(key).is_number());
    if (i > 0)
      for (const char* key : {"sim_seconds", "bytes_up", "bytes_down"})
        CHECK(lines[i].at(key).get<double>() > lines[i - 1].at(key).get<double>());
  }
  const auto summary = nlohmann::json::parse(read_text(folder.path / "out/summary.json"));
  CHECK(summary.at("method") == "droppeft");
  CHECK(summary.at("sim_seconds_to_target") == lines[2].at("sim_seconds"));
  CHECK(summary.at("settings").at("clients") == 6);
  double mean = 0;
  for (std::size_t i = 1; i < 4; ++i) mean += lines[i].at("accuracy").get<double>() / 3;
  CHECK(summary.at("final_accuracy").get<double>() == doctest::Approx(mean));
  CHECK_FALSE(adapter("out").empty());
}

TEST_CASE_FIXTURE(Fixture, "without data the embedded messages are used") {
  auto arguments = command("out", {"--rounds", "1"});
  const auto place = std::find(arguments.begin(), arguments.end(), "--data");
  arguments.erase(place, place + 2);
  Program program(folder.path, arguments);
  REQUIRE_MESSAGE(program.wait() == 0, program.errors());
  CHECK(program.output().starts_with("1360 training and 400 test texts of 8 classes"));
}

TEST_CASE_FIXTURE(Fixture, "the same seed gives the same run, another seed another") {
  REQUIRE(run("a") == 0);
  REQUIRE(run("b") == 0);
  REQUIRE(run("c", {"--seed", "1"}) == 0);
  CHECK(metrics("a") == metrics("b"));
  CHECK(adapter("a") == adapter("b"));
  CHECK(metrics("a") != metrics("c"));
}

TEST_CASE_FIXTURE(Fixture, "what is drawn does not depend on the thread count") {
  // LibTorch's matrix products do, in the last bits, and with them the losses.
  const auto with = [](const char* threads) {
    return std::vector<std::string>{"--drop-rate", "0.5",       "--local-steps",
                                    "1",           "--threads", threads};
  };
  REQUIRE(run("one", with("1")) == 0);
  REQUIRE(run("two", with("2")) == 0);
  const auto one = metrics("one"), two = metrics("two");
  REQUIRE(one.size() == two.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    for (const char* key : {"sim_seconds", "bytes_up", "bytes_down"})
      CHECK(one[i].at(key) == two[i].at(key));
    CHECK(one[i].at("loss").get<double>() == doctest::Approx(two[i].at("loss").get<double>()));
  }
}

TEST_CASE_FIXTURE(Fixture,
                  "killed at any moment and resumed, a run gives the bits of one left alone") {
  for (const std::vector<std::string>& how :
       {std::vector<std::string>{},
        {"--selector", "paper", "--share-layers", "1"},
        {"--selector", "exp3", "--space", "0.3,0.6:decay,normal", "--server-momentum", "0.5"},
        {"--selector", "thompson", "--reward", "loss"},
        {"--reward", "step"},
        {"--dtype", "bf16"},
        {"--gate", "bernoulli", "--pace", "device", "--selector", "paper", "--reward",
         "accuracy"}}) {
    auto settings = how;
    settings.insert(settings.end(), {"--rounds", "12"});
    REQUIRE_MESSAGE(run("alone", settings) == 0, errors);
    auto resume = settings;
    resume.push_back("--resume");
    for (const std::size_t seen : {1U, 4U, 7U}) {
      Program program(folder.path, command("killed", resume));
      while (lines_of(read_text(folder.path / "killed/metrics.jsonl")).size() < seen)
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      program.kill();
      program.wait();
    }
    REQUIRE_MESSAGE(run("killed", resume) == 0, errors);
    CHECK(metrics("alone") == metrics("killed"));
    CHECK(adapter("alone") == adapter("killed"));
    fs::remove_all(folder.path / "alone");
    fs::remove_all(folder.path / "killed");
  }
}

TEST_CASE_FIXTURE(Fixture, "fedlora drops nothing, and droppeft at rate 0 is fedlora to the bit") {
  REQUIRE(run("fedlora", {"--method", "fedlora"}) == 0);
  REQUIRE(run("zero", {"--drop-rate", "0"}) == 0);
  CHECK(metrics("fedlora") == metrics("zero"));
  CHECK(adapter("fedlora") == adapter("zero"));
  for (const auto& line : metrics("fedlora"))
    CHECK(line.at("drop_rates") == std::vector<double>(3, 0.0));
}

TEST_CASE_FIXTURE(Fixture, "dropped layers take less simulated time, memory and bytes") {
  REQUIRE(run("half", {"--drop-rate", "0.5", "--local-steps", "1"}) == 0);
  REQUIRE(run("full", {"--drop-rate", "0", "--local-steps", "1"}) == 0);
  const auto half = metrics("half").back(), full = metrics("full").back();
  for (const char* key : {"sim_seconds", "peak_bytes", "bytes_up"})
    CHECK(half.at(key).get<double>() < full.at(key).get<double>());
}

TEST_CASE_FIXTURE(Fixture,
                  "at the pace of the round fast devices drop less, and it takes about as long") {
  REQUIRE(run("round", {"--drop-rate", "0.5"}) == 0);
  REQUIRE(run("device", {"--drop-rate", "0.5", "--pace", "device"}) == 0);
  const auto paced = metrics("round"), each = metrics("device");
  for (std::size_t round = 0; round < paced.size(); ++round) {
    const auto rates = paced[round].at("drop_rates").get<std::vector<double>>();
    CHECK(*std::max_element(rates.begin(), rates.end()) == doctest::Approx(0.5));
    CHECK(*std::min_element(rates.begin(), rates.end()) < 0.5);
    CHECK(each[round].at("drop_rates") == std::vector<double>(3, 0.5));
  }
  CHECK(paced.back().at("sim_seconds").get<double>() ==
        doctest::Approx(each.back().at("sim_seconds").get<double>()).epsilon(0.1));
}

TEST_CASE_FIXTURE(Fixture, "before the server's first step nothing is gained along it") {
  REQUIRE(run("step", {"--reward", "step"}) == 0);
  CHECK(metrics("step")[0].at("gains") == std::vector<double>(3, 0.0));
  for (const double gain : metrics("step")[1].at("gains")) CHECK(gain != 0);
}

TEST_CASE_FIXTURE(Fixture, "a fixed rate may have a shape over the depth") {
  REQUIRE(run("even", {"--drop-rate", "0.5"}) == 0);
  REQUIRE(run("deep", {"--drop-rate", "0.5:incremental"}) == 0);
  for (const char* out : {"even", "deep"})
    CHECK(metrics(out).back().at("drop_rates")[0].get<double>() == doctest::Approx(0.5));
  CHECK(adapter("even") != adapter("deep"));
}

TEST_CASE("a step holds the bytes that its layers are said to keep, in fp32 and in bf16") {
  BertConfig config{.vocabulary = 50, .width = 64, .layers = 4, .heads = 4, .inner = 256};
  const at::Tensor ids = at::randint(config.vocabulary, {8, 32}, at::kLong);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    CAPTURE(dtype);
    TextClassifier model(config, 3);
    model->bert->to(dtype);
    droppeft::add_lora(*model, {"query", "value"}, droppeft::LoraOptions(2));
    droppeft::freeze(*model->head, false);
    const auto peak = [&](std::size_t active) {
      droppeft::Plan plan(4);
      for (std::size_t layer = active; layer < 4; ++layer) plan.set(layer, false);
      const droppeft::PlanScope scope(*model, plan);
      model->zero_grad();
      const droppeft::MemoryMeter meter;
      model->forward(ids, {}).sum().backward();
      return static_cast<double>(meter.peak());
    };
    const LayerCost cost{config, 2, at::elementSize(dtype)};
    const auto bytes = cost.step_bytes(8, 32, droppeft::trainable_state(*model).nbytes());
    CHECK((peak(4) - peak(1)) / 3 == doctest::Approx(bytes.layer_bytes).epsilon(0.03));
    for (std::size_t active = 1; active <= 4; ++active) CHECK(peak(active) <= bytes.bytes(active));
  }
}

TEST_CASE_FIXTURE(Fixture, "devices keep to their memory, whoever chooses") {
  const auto slow_peak = [&](const std::string& out) {
    std::int64_t peak = 0;
    for (const auto& line : metrics(out))
      for (std::size_t i = 0; i < 3; ++i)
        if (line.at("device_classes")[i] == "slow")
          peak = std::max(peak, line.at("device_peak_bytes")[i].get<std::int64_t>());
    return peak;
  };
  // One thread: attention's buffers, one a thread and not counted, are a seventh of so small a
  // step.
  for (const std::string dtype : {"fp32", "bf16"}) {
    REQUIRE(run(dtype, {"--drop-rate", "0", "--dtype", dtype, "--threads", "1"}) == 0);
    const double full = 1e-6 * static_cast<double>(slow_peak(dtype));
    const std::string memory = std::to_string(0.95 * full);
    for (const std::vector<std::string>& chosen :
         {std::vector<std::string>{},
          {"--drop-rate", "0"},
          {"--selector", "ucb"},
          {"--selector", "shared-thompson", "--pace", "device"},
          {"--selector", "paper", "--pace", "device"}}) {
      auto settings = chosen;
      settings.insert(settings.end(), {"--memory", memory, "--dtype", dtype, "--threads", "1"});
      const std::string out = dtype + std::to_string(settings.size()) + settings[1];
      REQUIRE_MESSAGE(run(out, settings) == 0, errors);
      const double peak = 1e-6 * static_cast<double>(slow_peak(out));
      CHECK(peak > 0);
      CHECK(peak <= 0.95 * full);
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "a run ends when its simulated seconds are used up") {
  REQUIRE(run("whole") == 0);
  const auto whole = metrics("whole");
  const double limit = 0.9 * whole[1].at("sim_seconds").get<double>();
  REQUIRE(run("short", {"--sim-seconds", std::to_string(limit)}) == 0);
  CHECK(metrics("short").size() == 2);
}

TEST_CASE_FIXTURE(Fixture, "compare runs both methods and sums them up") {
  REQUIRE_MESSAGE(run("both", {"--compare"}) == 0, errors);
  const auto summary = nlohmann::json::parse(read_text(folder.path / "both/summary.json"));
  CHECK(summary.at("fedlora").at("method") == "fedlora");
  CHECK(summary.at("droppeft").at("method") == "droppeft");
  CHECK(summary.at("fedlora").at("target_accuracy") == summary.at("fedlora").at("final_accuracy"));
  CHECK(output.find("simulated seconds to target") != std::string::npos);

  // droppeft ends in fedlora's simulated time or after six times its rounds.
  const auto plain = metrics("both/fedlora"), dropped = metrics("both/droppeft");
  CHECK(plain.size() == 4);
  const double limit = plain.back().at("sim_seconds").get<double>();
  CHECK((dropped.size() == 24 || dropped.back().at("sim_seconds").get<double>() >= limit));
  CHECK(dropped[dropped.size() - 2].at("sim_seconds").get<double>() < limit);
}

TEST_CASE_FIXTURE(Fixture,
                  "bad input is refused in three lines with code 2, and nothing is written") {
  const fs::path bad = folder.path / "bad";
  fs::create_directories(bad);
  const auto data_with = [&](const std::string& name, const std::string& train) {
    fs::create_directories(folder.path / name);
    write_text(folder.path / name / "train.csv", train);
    write_text(folder.path / name / "test.csv", train);
    return (folder.path / name).string();
  };
  const fs::path torn = folder.path / "torn";
  write_tiny_model(torn, 1);
  fs::resize_file(torn / "model.safetensors", 3000);
  write_text(folder.path / "file", "");
  const std::string one_column = data_with("one_column", "text\nhello\n");
  const std::string one_class = data_with("one_class", "label,text\na,b\na,c\n");
  const std::string ragged = data_with("ragged", "label,text\na,b\na\n");
  const std::string latin = data_with("latin", "label,text\ncaf\xe9,a\nb,c\n");
  const std::string unquoted = data_with("unquoted", "label,text\na,\"b\nc");

  struct Case {
    std::vector<std::string> arguments;
    std::string named;
  };
  const std::vector<Case> cases{
      {{"--model", (folder.path / "nowhere").string()}, "nowhere"},
      {{"--model", torn.string()}, "model.safetensors"},
      {{"--data", (folder.path / "nowhere").string()}, "nowhere"},
      {{"--data", bad.string()}, "train.csv"},
      {{"--data", one_column}, "label"},
      {{"--data", one_class}, "2 classes"},
      {{"--data", ragged}, "row 2"},
      {{"--data", unquoted}, "RFC 4180"},
      {{"--clients", "0"}, "--clients"},
      {{"--clients-per-round", "7"}, "--clients-per-round"},
      {{"--clients", "100"}, "--clients"},
      {{"--clients-per-round", "1"}, "--clients-per-round"},
      {{"--seed", "-1"}, "--seed"},
      {{"--rank", "1000"}, "--rank"},
      {{"--alpha", "0"}, "--alpha"},
      {{"--alpha", "-1"}, "--alpha"},
      {{"--alpha", "nan"}, "--alpha"},
      {{"--drop-rate", "nan"}, "--drop-rate"},
      {{"--drop-rate", "1.5"}, "--drop-rate"},
      {{"--drop-rate", "often"}, "often"},
      {{"--drop-rate", "0.5:round"}, "round"},
      {{"--memory", "-1"}, "--memory"},
      {{"--memory", "0.001"}, "--memory: a slow device cannot take part"},
      {{"--memory", "1", "--gate", "bernoulli"}, "--gate fixed"},
      {{"--memory", "1", "--method", "fedlora"}, "--memory"},
      {{"--method", "magic"}, "magic"},
      {{"--dtype", "fp16"}, "--dtype must be one of fp32, bf16; got 'fp16'"},
      {{"--gate", "open"}, "open"},
      {{"--pace", "slow"}, "slow"},
      {{"--sim-seconds", "nan"}, "--sim-seconds"},
      {{"--selector", "none"}, "none"},
      {{"--space", "0.5,0.3"}, "--space"},
      {{"--space", "1.5"}, "--space"},
      {{"--space", ","}, "--space"},
      {{"--space", "0.5:round", "--selector", "ucb"}, "--space"},
      {{"--space", "0.5:decay"}, "--space"},
      {{"--space", "0.5", "--selector", "paper"}, "--space"},
      {{"--space", "0.333,0.3333"}, "two configurations are called uniform 0.333"},
      {{"--drop-rate", "0.5", "--reward", "luck"}, "luck"},
      {{"--space", "0.5", "--drop-rate", "0.5"}, "--space"},
      {{"--share-layers", "3"}, "--share-layers"},
      {{"--rounds", "0"}, "--rounds"},
      {{"--rounds", "many"}, "--rounds"},
      {{"--local-steps", "0"}, "--local-steps"},
      {{"--max-length", "33"}, "--max-length"},
      {{"--target-accuracy", "2"}, "--target-accuracy"},
      {{"--learning-rate", "-1"}, "--learning-rate"},
      {{"--server-momentum", "1"}, "--server-momentum"},
      {{"--out", (folder.path / "file" / "out").string()}, "file"},
      {{"--colour", "red"}, "--colour"},
      {{"--compare", "--method", "fedlora"}, "--method"},
      {{"--resume", "--overwrite"}, "--overwrite"},
      {{"--pace", "device"}, "--selector"},
      {{"--drop-rate", "0.5", "--selector", "ucb"}, "--selector"},
      {{"--drop-rate", "0.5", "--reward", "loss"}, "--reward loss needs --drop-rate auto"},
      {{"--method", "fedlora", "--drop-rate", "0.5"}, "--drop-rate"},
      {{"--data", latin}, "not UTF-8"},
      {{"--batch", "4611686018427387904"}, "--batch"},
      {{"--threads", "4294967296"}, "--threads"},
  };
  for (const auto& [arguments, named] : cases) {
    CAPTURE(arguments[0] + " " + arguments[1]);
    CHECK(run("out", arguments) == 2);
    CAPTURE(errors);
    CHECK(lines_of(errors).size() <= 3);
    CHECK(errors.find(named) != std::string::npos);
    CHECK_FALSE(fs::exists(folder.path / "out"));
  }
}

TEST_CASE_FIXTURE(Fixture, "every selector plays, on a space of one's own") {
  for (const std::string& name : selector_names()) {
    CAPTURE(name);
    std::vector<std::string> settings{"--selector", name, "--rounds", "4"};
    if (name != "paper") settings.insert(settings.end(), {"--space", "0.5"});
    REQUIRE_MESSAGE(run(name, settings) == 0, errors);
    if (name == "paper" || name == "pace") continue;
    // No dropout, and half of the layers dropped by the slowest: both are tried in four rounds.
    std::set<bool> dropped;
    for (const auto& line : metrics(name))
      for (const double rate : line.at("drop_rates")) dropped.insert(rate > 0);
    CHECK(dropped.size() == 2);
  }
}

TEST_CASE_FIXTURE(Fixture, "a run that is there is neither lost nor mixed with another") {
  REQUIRE(run("out") == 0);
  const auto before = metrics("out");
  CHECK(run("out", {"--seed", "3"}) == 2);
  CHECK(errors.find("--overwrite") != std::string::npos);
  CHECK(lines_of(errors).size() <= 3);
  CHECK(metrics("out") == before);
  CHECK(run("out", {"--overwrite", "--learning-rate", "1e38"}) == 2);
  CHECK(metrics("out") == before);
  CHECK(fs::exists(folder.path / "out/adapter.safetensors"));
  REQUIRE_MESSAGE(run("out", {"--resume"}) == 0, errors);
  REQUIRE_MESSAGE(run("out", {"--seed", "3", "--overwrite"}) == 0, errors);
  CHECK(metrics("out") != before);
}

TEST_CASE_FIXTURE(Fixture, "a run is not resumed with other settings, nor its files harmed") {
  REQUIRE(run("out") == 0);
  const auto before = metrics("out");
  write_tiny_model(folder.path / "other model", 2);
  CHECK(run("out", {"--resume", "--model", (folder.path / "other model").string()}) == 2);
  CHECK(errors.find("another --model") != std::string::npos);
  fs::copy(data, folder.path / "other data");
  std::ofstream(folder.path / "other data/test.csv", std::ios::app) << "class1,f g h\n";
  CHECK(run("out", {"--resume", "--data", (folder.path / "other data").string()}) == 2);
  CHECK(errors.find("another --data") != std::string::npos);
  CHECK(run("out", {"--resume", "--seed", "3"}) == 2);
  CHECK(errors.find("seed") != std::string::npos);
  CHECK(metrics("out") == before);
  write_text(folder.path / "out/checkpoint.safetensors", "torn");
  CHECK(run("out", {"--resume"}) == 2);
  CHECK(errors.find("checkpoint.safetensors") != std::string::npos);
  CHECK(metrics("out") == before);
}

TEST_CASE_FIXTURE(Fixture, "a comparison that was stopped goes on, without what was there before") {
  REQUIRE_MESSAGE(run("both", {"--compare"}) == 0, errors);
  {
    Program program(folder.path, command("both", {"--compare", "--overwrite", "--seed", "3"}));
    while (metrics("both/fedlora").size() != 1) std::this_thread::yield();
    program.kill();
    program.wait();
  }
  CHECK_FALSE(fs::exists(folder.path / "both/summary.json"));
  REQUIRE_MESSAGE(run("both", {"--compare", "--resume", "--seed", "3"}) == 0, errors);
  REQUIRE(run("alone", {"--compare", "--seed", "3"}) == 0);
  for (const char* method : {"fedlora", "droppeft"})
    CHECK(metrics(std::string("both/") + method) == metrics(std::string("alone/") + method));
}

TEST_CASE_FIXTURE(
    Fixture, "in bf16 a run learns in less memory, goes on in bf16 alone, and predict takes it") {
  const auto with = [](const char* dtype) {
    return std::vector<std::string>{"--method", "fedlora", "--rounds", "10", "--dtype", dtype};
  };
  REQUIRE_MESSAGE(run("fp32", with("fp32")) == 0, errors);
  REQUIRE_MESSAGE(run("bf16", with("bf16")) == 0, errors);
  const auto full = metrics("fp32"), half = metrics("bf16");
  CHECK(half.back().at("loss").get<double>() < 0.9 * half.front().at("loss").get<double>());
  CHECK(half.back().at("loss").get<double>() ==
        doctest::Approx(full.back().at("loss").get<double>()).epsilon(0.05));
  CHECK(half.back().at("loss") != full.back().at("loss"));
  CHECK(half.back().at("peak_bytes").get<double>() < full.back().at("peak_bytes").get<double>());
  for (const char* key : {"sim_seconds", "bytes_up", "bytes_down"})
    CHECK(half.back().at(key) == full.back().at(key));

  auto resume = with("fp32");
  resume.push_back("--resume");
  CHECK(run("bf16", resume) == 2);
  CHECK(errors.find("was made with dtype = \"bf16\", not \"fp32\"") != std::string::npos);

  const std::string file = (folder.path / "bf16/adapter.safetensors").string();
  for (const auto& [name, tensor] : droppeft::load_safetensors(file))
    CHECK((tensor.scalar_type() == at::kFloat));
  Program program(folder.path, {PREDICT, "--model", model.string(), "--adapter", file}, "a b c\n");
  REQUIRE_MESSAGE(program.wait() == 0, program.errors());
  CHECK(lines_of(program.output()).size() == 1);
}

TEST_CASE_FIXTURE(Fixture, "a run that diverges says so, and what to do") {
  CHECK(run("out", {"--learning-rate", "1e38"}) == 2);
  CHECK(errors.find("diverged") != std::string::npos);
  CHECK(errors.find("--learning-rate") != std::string::npos);
  CHECK(fs::is_empty(folder.path / "out"));
}

TEST_CASE_FIXTURE(Fixture, "a head alone is trained with rank 0, and help tells the cost model") {
  REQUIRE_MESSAGE(run("head", {"--rank", "0", "--method", "fedlora"}) == 0, errors);
  const auto state = droppeft::load_safetensors(folder.path / "head/adapter.safetensors");
  CHECK(state.size() == 2);
  REQUIRE(run("nothing", {"--help"}) == 0);
  CHECK(output.find("GFLOP/s") != std::string::npos);
  CHECK_FALSE(fs::exists(folder.path / "nothing"));
}

TEST_CASE_FIXTURE(Fixture,
                  "the tokeniser is as its configuration says, and no larger than the model") {
  const BertConfig config = read_bert_config(model);
  CHECK(read_tokenizer(model, config, 8).options().lower_case);
  write_text(model / "tokenizer_config.json", R"({"do_lower_case": false, "strip_accents": null})");
  CHECK_FALSE(read_tokenizer(model, config, 8).options().lower_case);
  CHECK_FALSE(read_tokenizer(model, config, 8).options().strip_accents);
  std::ofstream(model / "vocab.txt", std::ios::app) << "more\n";
  CHECK(run("out") == 2);
  CHECK(errors.find("has 32 tokens, but config.json says 31") != std::string::npos);
  CHECK_FALSE(fs::exists(folder.path / "out"));
}

TEST_CASE_FIXTURE(Fixture, "predict is as accurate as the last round, and refuses another model") {
  REQUIRE_MESSAGE(run("out", {"--rounds", "10"}) == 0, errors);
  const std::string file = (folder.path / "out/adapter.safetensors").string();
  std::vector<std::string> labels;
  std::string texts;
  for (const auto& row : lines_of(read_text(data / "test.csv"))) {
    if (row == "label,text") continue;
    labels.push_back(row.substr(0, row.find(',')));
    texts += row.substr(row.find('"') + 1, row.rfind('"') - row.find('"') - 1) + "\n";
  }
  Program program(folder.path, {PREDICT, "--model", model.string(), "--adapter", file},
                  texts + "\nnot \xff UTF-8\n");
  REQUIRE_MESSAGE(program.wait() == 0, program.errors());
  const auto answers = lines_of(program.output());
  REQUIRE(answers.size() == labels.size() + 2);
  double right = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto answer = nlohmann::json::parse(answers[i]);
    CHECK(answer.at("probability").get<double>() > 1.0 / 3 - 1e-6);
    CHECK(answer.at("probability").get<double>() <= 1);
    if (i < labels.size()) right += answer.at("label") == labels[i];
  }
  // A text that lies between two classes may fall either way with and without padding.
  const double accuracy = metrics("out").back().at("accuracy");
  CHECK(std::abs(right - accuracy * static_cast<double>(labels.size())) <= 1);

  const fs::path other = folder.path / "other";
  write_tiny_model(other, 2);
  for (const auto& [folder_of_model, adapter_file, named] :
       {std::tuple(other.string(), file, std::string("another model")),
        std::tuple(model.string(), (model / "model.safetensors").string(),
                   std::string("not an adapter")),
        std::tuple(model.string(), std::string("nowhere"), std::string("nowhere"))}) {
    Program refused(folder.path, {PREDICT, "--model", folder_of_model, "--adapter", adapter_file});
    CHECK(refused.wait() == 2);
    CHECK(lines_of(refused.errors()).size() <= 3);
    CHECK(refused.errors().find(named) != std::string::npos);
    CHECK(refused.output().empty());
  }
}
