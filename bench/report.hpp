#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <droppeft/memory/meter.hpp>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "limits.hpp"
#include "rows.hpp"

/// A piece of work that several do: ours, and rivals; and the least it can take.
struct Case {
  std::string kernel;  // bench/report.py knows the targets by it
  std::string shape;
  std::string dtype = "fp32";
  /// The least bytes that a call must read and write, and its multiplications and additions.
  double bytes = 0, flops = 0;
  /// Writes nothing to speak of: bytes are limited by reading, not by STREAM's triad.
  bool reads_only = false;
  /// Who of this case is part of the limit: their times come on top of that.
  std::vector<std::string> upon = {};
  int repetitions = 15;
  /// Calls in one repetition, of which the mean is taken.
  int calls = 1;
  /// What else its records say, or say otherwise.
  nlohmann::json more = nlohmann::json::object();

  std::string row(const std::string& who) const {
    return kernel + '/' + shape + '/' + dtype + '/' + who;
  }
};

/// Tokens and width of the encoders that kernels are timed for; report.py knows them by name.
struct EncoderShape {
  const char* name;
  std::int64_t tokens, width;
};
inline const EncoderShape encoder_shapes[] = {
    {"MiniLM", 1024, 384}, {"BERT-base", 1024, 768}, {"BERT-large", 512, 1024}};

/// As many of what `make` makes as together exceed the caches; next() gives one after the other.
template <class T>
class Rotated {
 public:
  template <class Make>
  Rotated(double bytes_of_one, const Make& make) {
    const double beyond_caches = 256e6;
    const auto count = 1 + static_cast<std::size_t>(std::ceil(beyond_caches / bytes_of_one));
    while (made_.size() < count) made_.push_back(make());
  }
  T& next() { return made_[at_++ % made_.size()]; }

 private:
  std::vector<T> made_;
  std::size_t at_ = 0;
};
/// To be captured by the rows that share it.
template <class Make>
auto rotated(double bytes_of_one, const Make& make) {
  return std::make_shared<Rotated<decltype(make())>>(bytes_of_one, make);
}

/// A program's rows: timed in an order chosen at random, the limits of the machine among them;
/// printed as a table and, with --json FILE, written as a line of JSON each, after one that
/// describes the machine. --quick: three repetitions at most. --serve: takes turns with other
/// programs; prints the names of the rows as a line of JSON, then answers each name on standard
/// input with the seconds of one repetition, after a call to warm up. And Google Benchmark's
/// options.
class Report {
 public:
  /// Prints what machine this is. Exits when an option is unknown.
  Report(std::string program, int count, char** arguments) : program_(std::move(program)) {
    std::vector<char*> options(arguments, arguments + count);
    const auto take = [&](const char* name) {
      return std::erase_if(options, [&](const char* o) { return std::strcmp(o, name) == 0; }) > 0;
    };
    quick_ = take("--quick");
    serve_ = take("--serve");
    for (std::size_t i = 1; i + 1 < options.size(); ++i)
      if (std::strcmp(options[i], "--json") == 0) {
        file_ = options[i + 1];
        const auto option = options.begin() + static_cast<std::ptrdiff_t>(i);
        options.erase(option, option + 2);
      }
    const auto help = [] {
      std::puts("options: [--quick] [--json FILE] [--serve], and Google Benchmark's:");
      benchmark::PrintDefaultHelp();
    };
    if (!initialize(options, help)) std::exit(2);
    if (!serve_) machine_ = print_machine(std::cout);
  }

  bool quick() const { return quick_; }

  /// A row: `who` does the work of `work` by function(), or by function(x) for an x = prepare()
  /// made before the clock starts. Buffers that are rotated belong into `prepare` or before.
  template <class Function>
  void add(const Case& work, const std::string& who, Function function) {
    add(
        work, who, [] { return 0; }, [function](int) mutable { function(); });
  }
  template <class Prepare, class Function>
  void add(const Case& work, const std::string& who, Prepare prepare, Function function) {
    Row row{work, who, work.row(who), {}, {}};
    row.repetition = [=](int calls) mutable {
      std::vector<decltype(prepare())> prepared;
      for (int call = 0; call < calls; ++call) prepared.push_back(prepare());
      const auto start = std::chrono::steady_clock::now();
      for (auto& one : prepared) function(one);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      return taken.count() / calls;
    };
    row.peak = [=]() mutable {
      auto prepared = prepare();
      const droppeft::MemoryMeter meter;
      function(prepared);
      return meter.peak();
    };
    rows_.push_back(std::move(row));
  }

  /// A record of a row that the program timed itself, under the name `row`.
  void add_record(const Case& work, const std::string& who, const std::string& row) {
    if (median(row)) records_.push_back(record({work, who, row, {}, {}}));
  }

  /// Runs all rows that were added, or serves.
  void run() {
    if (serve_) return serve();
    add_limits();
    for (const Row& row : rows_) {
      peaks_[row.name] = row.peak();  // warms up, too
      add_row(row.name, quick_ ? std::min(row.work.repetitions, 3) : row.work.repetitions,
              [&row](benchmark::State& state, const std::string& name) {
                for ([[maybe_unused]] auto turn : state) {
                  const double seconds = row.repetition(row.work.calls);
                  state.SetIterationTime(seconds);
                  measured[name].push_back(seconds);
                }
              });
    }
    benchmark::RunSpecifiedBenchmarks();
    for (const Row& row : rows_)
      if (median(row.name)) records_.push_back(record(row));
  }

  /// Prints the table and writes the file; to be returned by main.
  int finish() const {
    if (serve_) return 0;
    print();
    if (file_.empty()) return 0;
    std::ofstream out(file_);
    out << nlohmann::json{{"program", program_}, {"machine", machine_}} << '\n';
    for (const auto& one : records_) out << one << '\n';
    if (out.flush()) return 0;
    std::cerr << "cannot write '" << file_ << "'\n";
    return 1;
  }

 private:
  struct Row {
    Case work;
    std::string who, name;
    std::function<double(int)> repetition;  // seconds of a call, of so many
    std::function<std::int64_t()> peak;     // of LibTorch's allocators, in a call
  };

  static Case limit(const std::string& what, const std::string& dtype = "fp32") {
    return {.kernel = "limit", .shape = what, .dtype = dtype};
  }

  void add_limits() {
    int repetitions = 9;
    bool bf16 = false;
    for (const Row& row : rows_) {
      repetitions = std::max(repetitions, row.work.repetitions);
      bf16 = bf16 || (row.work.dtype == "bf16" && row.work.flops > 0);
    }
    const auto add_limit = [&](Case work, double bytes, double flops, auto function) {
      work.bytes = bytes;
      work.flops = flops;
      work.repetitions = repetitions;
      add(work, "limit", function);
    };
    const auto stream = std::make_shared<limits::Stream>();
    add_limit(limit("read"), limits::Stream::bytes, 0, [stream] { stream->read(); });
    add_limit(limit("triad"), 3 * limits::Stream::bytes, 0, [stream] { stream->triad(); });
    add_limit(limit("FMA"), 0, limits::all_threads_fma(), [] { limits::all_threads_fma(); });
    const auto gemm = std::make_shared<limits::Gemm>(at::kFloat);
    add_limit(limit("mm"), 0, limits::Gemm::flops, [gemm] { gemm->multiply(); });
    if (!bf16) return;
    const auto gemm_bf16 = std::make_shared<limits::Gemm>(at::kBFloat16);
    add_limit(limit("mm", "bf16"), 0, limits::Gemm::flops, [gemm_bf16] { gemm_bf16->multiply(); });
  }

  /// Bytes or operations a second, of the row among the others or, if that was filtered out, of the
  /// start.
  double rate(const Case& limit, double amount, const char* at_start) const {
    const auto seconds = median(limit.row("limit"));
    return seconds ? amount / *seconds : 1e9 * machine_.at(at_start).get<double>();
  }
  double bandwidth(const Case& work) const {
    return work.reads_only ? rate(limit("read"), limits::Stream::bytes, "read_GBs")
                           : rate(limit("triad"), 3 * limits::Stream::bytes, "triad_GBs");
  }
  double flop_rate(const Case& work) const {
    return rate(limit("mm", work.dtype), limits::Gemm::flops, "mm_GFLOPs");
  }

  /// Seconds that a call must take.
  std::optional<double> limit_seconds(const Case& work) const {
    double seconds = std::max(work.bytes > 0 ? work.bytes / bandwidth(work) : 0,
                              work.flops > 0 ? work.flops / flop_rate(work) : 0);
    for (const std::string& who : work.upon) {
      const auto part = median(work.row(who));
      if (!part) return std::nullopt;
      seconds += *part;
    }
    return seconds > 0 ? std::optional(seconds) : std::nullopt;
  }

  nlohmann::json record(const Row& row) const {
    const Case& work = row.work;
    const double seconds = *median(row.name);
    nlohmann::json made{{"program", program_},
                        {"kernel", work.kernel},
                        {"shape", work.shape},
                        {"dtype", work.dtype},
                        {"who", row.who},
                        {"seconds", seconds},
                        {"error", median_error(row.name)},
                        {"times", measured.at(row.name)}};
    if (work.bytes > 0) made["bytes"] = work.bytes;
    if (work.flops > 0) made["flops"] = work.flops;
    if (peaks_.contains(row.name)) made["peak_bytes"] = peaks_.at(row.name);
    if (work.kernel != "limit")
      if (const auto least = limit_seconds(work)) {
        made["limit_seconds"] = *least;
        made["percent"] = 100 * *least / seconds;
      }
    made.update(work.more);
    return made;
  }

  void print() const {
    std::puts(
        "\nms: median; +-: its standard error, and that of the per cent; limit ms: the least bytes "
        "at "
        "this run's\ntriad or read rate, or the operations at its at::mm rate, whichever takes "
        "longer; % of it: limit / ms;\npeak MB: allocated by LibTorch in a call");
    std::string title;
    for (const auto& one : records_) {
      const auto text = [&](const char* key) { return one.at(key).get<std::string>(); };
      const auto number = [&](const char* key, double factor, int width, int digits) {
        const double value = one.contains(key) ? factor * one[key].get<double>() : std::nan("");
        if (std::isnan(value))
          std::printf("%*s", width, "-");
        else
          std::printf("%*.*g", width, digits, value);
      };
      const std::string its_title = text("kernel") + ", " + text("shape") + ", " + text("dtype");
      if (its_title != title)
        std::printf(
            "\n%s\n        ms       +-  limit ms  %% of it     +-     GB/s  GFLOP/s   peak MB\n",
            its_title.c_str());
      title = its_title;
      const double seconds = one["seconds"];
      number("seconds", 1e3, 10, 4);
      number("error", 1e3, 9, 2);
      number("limit_seconds", 1e3, 10, 4);
      number("percent", 1, 9, 3);
      number("percent_error", 1, 7, 2);
      number("bytes", 1e-9 / seconds, 9, 3);
      number("flops", 1e-9 / seconds, 9, 3);
      number("peak_bytes", 1e-6, 10, 5);
      std::printf("  %s\n", text("who").c_str());
    }
  }

  void serve() const {
    std::map<std::string, const Row*> by_name;
    nlohmann::json names;
    for (const Row& row : rows_) {
      by_name[row.name] = &row;
      names.push_back(row.name);
    }
    std::cout.precision(9);
    std::cout << names << '\n' << std::flush;
    for (std::string name; std::getline(std::cin, name);) {
      const Row& row = *by_name.at(name);
      row.repetition(1);
      std::cout << row.repetition(row.work.calls) << '\n' << std::flush;
    }
  }

  std::string program_, file_;
  bool quick_ = false, serve_ = false;
  nlohmann::json machine_;
  std::vector<Row> rows_;
  std::map<std::string, std::int64_t> peaks_;
  std::vector<nlohmann::json> records_;
};
