#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <droppeft/io/replacing_file.hpp>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "devices.hpp"
#include "federation.hpp"
#include "settings.hpp"

/// Replaces `path` as a whole: a reader finds the old text or the new one, never a part.
inline void write_file(const std::filesystem::path& path, const std::string& text) {
  droppeft::ReplacingFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

/// Mean of the accuracies up to and with `round` (from 0), since single ones swing: of the last
/// three rounds, or of as many as end within the last `seconds` of simulated time if those are
/// more. A mean over more time lags more, so runs whose rounds differ in length compare by one
/// `seconds`.
inline double smoothed(const std::vector<RoundMetrics>& metrics, std::size_t round,
                       double seconds = 0, double RoundMetrics::*which = &RoundMetrics::accuracy) {
  std::size_t first = round < 2 ? 0 : round - 2;
  while (first > 0 && metrics[first - 1].sim_seconds > metrics[round].sim_seconds - seconds)
    --first;
  double sum = 0;
  for (std::size_t i = first; i <= round; ++i) sum += metrics[i].*which;
  return sum / static_cast<double>(round - first + 1);
}

/// The first round in which that mean is at the target, after three rounds and `seconds`; the last
/// round of a shorter run has as many as there are.
inline std::optional<std::size_t> round_at_target(const std::vector<RoundMetrics>& metrics,
                                                  double target, double seconds = 0) {
  for (std::size_t round = std::min<std::size_t>(2, metrics.size() - 1); round < metrics.size();
       ++round)
    if (metrics[round].sim_seconds >= std::min(seconds, metrics.back().sim_seconds) &&
        smoothed(metrics, round, seconds) >= target)
      return round;
  return std::nullopt;
}

/// Mean over the rounds' slow devices of the peak bytes of their training; 0 without any.
inline double slow_peak_bytes(const std::vector<RoundMetrics>& metrics) {
  double sum = 0, count = 0;
  for (const auto& round : metrics)
    for (std::size_t i = 0; i < round.device_classes.size(); ++i)
      if (round.device_classes[i] == speed_classes.front().name) {
        sum += static_cast<double>(round.device_peak_bytes[i]);
        ++count;
      }
  return count > 0 ? sum / count : 0;
}

/// A run that has been played, and how it is judged.
struct Run {
  Settings settings;
  std::vector<RoundMetrics> metrics;
  std::int64_t resident_bytes = 0;  // the weights that a device holds beside what training takes
  double smoothing_seconds = 0;     // as for smoothed()
  double target = 0;                // accuracy; 0: none

  double final_accuracy() const { return smoothed(metrics, metrics.size() - 1, smoothing_seconds); }
  std::optional<std::size_t> at_target() const {
    return round_at_target(metrics, target, smoothing_seconds);
  }
};

/// What summary.json says of a run; the times to the target are null where none was asked for.
inline nlohmann::json summarise(const Run& run) {
  const auto& metrics = run.metrics;
  double best = 0;
  for (const auto& round : metrics) best = std::max(best, round.accuracy);
  const double slow = slow_peak_bytes(metrics);
  nlohmann::json summary{
      {"method", run.settings.method},
      {"final_accuracy", run.final_accuracy()},
      {"best_accuracy", best},
      {"final_personal_accuracy", smoothed(metrics, metrics.size() - 1, run.smoothing_seconds,
                                           &RoundMetrics::personal_accuracy)},
      {"smoothing_seconds", run.smoothing_seconds},
      {"target_accuracy", nullptr},
      {"sim_seconds_to_target", nullptr},
      {"wall_seconds_to_target", nullptr},
      {"bytes_to_target", nullptr},
      {"sim_seconds", metrics.back().sim_seconds},
      {"wall_seconds", metrics.back().wall_seconds},
      {"peak_bytes", metrics.back().peak_bytes},
      {"slow_peak_bytes", slow},
      {"slow_peak_and_resident_bytes", slow + static_cast<double>(run.resident_bytes)},
      {"bytes_up", metrics.back().bytes_up},
      {"bytes_down", metrics.back().bytes_down},
      {"cost_model", cost_model},
      {"settings", run.settings}};
  summary["settings"]["model"] = run.settings.model.string();
  summary["settings"]["data"] = run.settings.data.string();
  summary["settings"]["threads"] = run.settings.threads;
  if (run.target <= 0) return summary;
  summary["target_accuracy"] = run.target;
  if (const auto round = run.at_target()) {
    summary["sim_seconds_to_target"] = metrics[*round].sim_seconds;
    summary["wall_seconds_to_target"] = metrics[*round].wall_seconds;
    summary["bytes_to_target"] = metrics[*round].bytes_up + metrics[*round].bytes_down;
  }
  return summary;
}

/// A string of gnuplot's that stands for `text` alone.
inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char character : text) result += character == '\'' ? "''" : std::string{character};
  return result + "'";
}

/// Runs a script that writes `path`. Says so and goes on without gnuplot.
inline void run_gnuplot(const std::filesystem::path& path, const std::string& script) {
  std::signal(SIGPIPE, SIG_IGN);  // gnuplot may not be there to read
  std::unique_ptr<FILE, int (*)(FILE*)> gnuplot(popen("gnuplot 2>/dev/null", "w"), pclose);
  const bool written =
      gnuplot && std::fwrite(script.data(), 1, script.size(), gnuplot.get()) == script.size();
  const bool drawn = written && pclose(gnuplot.release()) == 0;
  if (!drawn) std::cout << path.string() << " was not drawn: it needs gnuplot\n";
}

/// Draws accuracy against simulated time, and beside it, when there are two runs, the second's
/// seconds, bytes and memory as shares of the first's.
inline void draw(const std::filesystem::path& path, const std::vector<Run>& runs) {
  std::ostringstream plot;
  const bool pair = runs.size() == 2;
  const double target = runs.front().target;
  plot << "set terminal pngcairo size " << (pair ? "1200,480" : "800,480")
       << " font 'sans,11' enhanced\nset output " << quoted(path.string()) << "\n";
  for (std::size_t i = 0; i < runs.size(); ++i) {
    plot << "$run" << i << " << EOD\n";
    const auto& metrics = runs[i].metrics;
    for (std::size_t round = 0; round < metrics.size(); ++round)
      plot << metrics[round].sim_seconds << ' ' << metrics[round].accuracy << ' '
           << smoothed(metrics, round, runs[i].smoothing_seconds) << '\n';
    plot << "EOD\n";
  }
  const char* colours[] = {"#7f7f7f", "#d1495b"};
  if (pair) plot << "set multiplot\nset size 0.66,1\nset origin 0,0\n";
  plot << "set key bottom right\nset grid ytics lc '#dddddd'\nset border 3\nset tics nomirror\n"
       << "set xlabel 'simulated seconds'\nset ylabel 'accuracy on the test set'\nset xrange "
          "[0:*]\n";
  if (target > 0)
    plot << "set arrow 1 from graph 0, first " << target << " to graph 1, first " << target
         << " nohead dt 2 lc '#999999'\nset label 1 'target' at graph 0.01, first " << target
         << " offset 0,0.6 tc '#777777'\n";
  plot << "plot ";
  for (std::size_t i = 0; i < runs.size(); ++i)
    plot << (i ? ", " : "") << "$run" << i << " using 1:2 with points pt 7 ps 0.5 lc '"
         << colours[i] << "' title '" << (i ? "" : "single rounds") << "', $run" << i
         << " using 1:3 with lines lw 2.5 lc '" << colours[i] << "' title '"
         << runs[i].settings.method << ", mean of "
         << (i ? "as many seconds" : "the last three rounds") << "'";
  plot << '\n';
  if (pair) {
    const auto share = [&](const auto& value) {
      return 100 * value(runs[1].metrics) / value(runs[0].metrics);
    };
    const auto share_at_target = [&](const auto& value) {
      return share([&](const std::vector<RoundMetrics>& metrics) {
        const auto round = round_at_target(metrics, target, runs.back().smoothing_seconds);
        return round ? value(metrics[*round]) : std::nan("");
      });
    };
    const auto bar = [&](int place, double height, const std::string& label) {
      plot << place << ' ' << (std::isfinite(height) ? height : 0) << " \"" << label
           << (std::isfinite(height) ? "" : "\\n(not reached)") << "\"\n";
    };
    plot << "unset arrow 1\nunset label 1\nset size 0.34,1\nset origin 0.66,0\nunset key\nunset "
            "xlabel\n"
         << "set ylabel '" << runs[1].settings.method << " as % of " << runs[0].settings.method
         << "'\n"
         << "set bmargin 4\nset yrange [0:*]\nset offsets 0,0,12,0\nset xrange [-0.6:2.6]\nset "
            "boxwidth 0.6\nset style fill solid\n"
         << "set arrow 2 from -0.6,100 to 2.6,100 nohead dt 2 lc '#999999'\n$bars << EOD\n";
    bar(0, share_at_target([](const RoundMetrics& at) { return at.sim_seconds; }),
        "time to\\ntarget");
    bar(1, share(slow_peak_bytes), "memory,\\nslow devices");
    bar(2, share_at_target([](const RoundMetrics& at) {
          return static_cast<double>(at.bytes_up + at.bytes_down);
        }),
        "bytes to\\ntarget");
    plot << "EOD\n"
         << "plot $bars using 1:2:xtic(3) with boxes lc '#d1495b', '' using "
            "1:2:($2 > 0 ? sprintf('%.0f',$2) : '') with labels offset 0,0.7\nunset multiplot\n";
  }
  run_gnuplot(path, plot.str());
}

/// Draws by round which configurations, or paces, were played, the larger the more devices did, and
/// beneath what was believed of each, with its 95 % interval. Nothing where nothing chose.
inline void draw_choices(const std::filesystem::path& path,
                         const std::vector<RoundMetrics>& metrics) {
  std::vector<std::string> names;  // in the order in which they came
  for (const RoundMetrics& round : metrics)
    for (const Belief& belief : round.beliefs)
      if (std::ranges::find(names, belief.name) == names.end()) names.push_back(belief.name);
  if (names.empty()) return;
  std::ostringstream plot;
  plot << "set terminal pngcairo size 1000," << 420 + 24 * names.size()
       << " font 'sans,11' enhanced\nset output " << quoted(path.string()) << "\n";
  for (std::size_t arm = 0; arm < names.size(); ++arm) {
    plot << "$played" << arm << " << EOD\n0 0 0\n";
    for (const RoundMetrics& round : metrics)
      if (const auto times = std::ranges::count(round.played, names[arm]); times > 0)
        plot << round.round << ' ' << arm << ' '
             << 3 * std::sqrt(static_cast<double>(times) / static_cast<double>(round.played.size()))
             << '\n';
    plot << "EOD\n$believed" << arm << " << EOD\n";
    for (const RoundMetrics& round : metrics)
      for (const Belief& belief : round.beliefs)
        if (belief.name == names[arm])
          plot << round.round << ' ' << belief.worth << ' ' << belief.half_width << '\n';
    plot << "EOD\n";
  }
  const auto each_arm = [&](const std::function<void(const std::string& number)>& write) {
    for (std::size_t arm = 0; arm < names.size(); ++arm) {
      plot << (arm ? ", " : "plot ");
      write(std::to_string(arm));
    }
    plot << '\n';
  };
  const double share = (60 + 24.0 * static_cast<double>(names.size())) /
                       (420 + 24.0 * static_cast<double>(names.size()));
  plot << "set multiplot\nset border 3\nset tics nomirror\nset lmargin 20\nset rmargin 24\nset "
          "xrange [0:"
       << metrics.back().round + 1 << "]\nset size 1," << share << "\nset origin 0," << 1 - share
       << "\nunset key\nset title 'played'\nset yrange [-0.6:" << names.size() << " - 0.4]\n"
       << "set ytics (";
  for (std::size_t arm = 0; arm < names.size(); ++arm)
    plot << (arm ? ", " : "") << quoted(names[arm]) << ' ' << arm;
  plot << ")\n";
  each_arm([&](const std::string& arm) {
    plot << "$played" << arm << " using 1:($3 > 0 ? $2 : NaN):3 with points pt 7 ps variable lt "
         << arm << " + 1";
  });
  plot << "set size 1," << 1 - share << "\nset origin 0,0\nset title '"
       << (metrics.back().played.size() == 1
               ? "believed gain of a round (what is played should gain the most a second)"
               : "believed reward")
       << ", 95 % intervals'\nset autoscale y\nset ytics auto\nset xlabel 'round'\n"
       << "set style fill transparent solid 0.12 noborder\nset key outside right\n";
  each_arm([&](const std::string& arm) {
    plot << "$believed" << arm << " using 1:($2 - $3):($2 + $3) with filledcurves lt " << arm
         << " + 1 notitle, $believed" << arm << " using 1:2 with lines lw 2 lt " << arm
         << " + 1 title " << quoted(names[std::stoul(arm)]);
  });
  plot << "unset multiplot\n";
  run_gnuplot(path, plot.str());
}

/// Tells how a run goes: a bar with the time left on a terminal, and a line a round anywhere.
class Console {
 public:
  explicit Console(std::string method)
      : method_(std::move(method)), terminal_(isatty(STDOUT_FILENO) == 1) {}

  /// Within round `round` (from 1), `share` of the whole run is done.
  void step(std::int64_t round, double share) {
    if (!terminal_) return;
    share = std::min(share, 1.0);
    if (!first_share_) first_share_ = share;
    std::cout << "\r\033[K" << method_ << " [" << std::string(filled(share), '=')
              << std::string(24 - filled(share), ' ') << "] round " << round;
    if (share > first_share_) {
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
      const double left = passed.count() * (1 - share) / (share - *first_share_);
      std::cout << ", " << std::llround(left) << " s left";
    }
    std::cout << std::flush;
  }

  ~Console() { clear(); }  // of a bar that an error leaves behind
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  void round(const RoundMetrics& metrics) {
    clear();
    double rate = 0;
    for (const double each : metrics.drop_rates)
      rate += each / static_cast<double>(metrics.drop_rates.size());
    std::cout << std::fixed << method_ << " round " << std::setw(3) << metrics.round
              << std::setprecision(3) << "  accuracy " << metrics.accuracy << "  personal "
              << metrics.personal_accuracy << "  loss " << metrics.loss << std::setprecision(2)
              << "  dropped " << rate << std::setprecision(0) << "  sim " << metrics.sim_seconds
              << " s  wall " << metrics.wall_seconds << " s" << std::setprecision(1) << "  peak "
              << static_cast<double>(metrics.peak_bytes) / 1e6 << " MB  up "
              << static_cast<double>(metrics.bytes_up) / 1e6 << " MB  down "
              << static_cast<double>(metrics.bytes_down) / 1e6 << " MB" << std::endl;
  }

 private:
  void clear() const {
    if (terminal_) std::cout << "\r\033[K" << std::flush;
  }

  static std::size_t filled(double share) { return static_cast<std::size_t>(24 * share); }

  std::string method_;
  bool terminal_;
  std::optional<double> first_share_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};
