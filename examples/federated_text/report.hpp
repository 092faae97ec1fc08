#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <droppeft/core/check.hpp>
#include <filesystem>
#include <fstream>
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
  const auto temporary = path.string() + ".tmp";
  {
    std::ofstream file(temporary, std::ios::binary);
    file << text;
    file.flush();
    droppeft::require(file.good(), "cannot write ", temporary);
  }
  std::filesystem::rename(temporary, path);
}

/// Mean of the last three accuracies up to and with `round` (from 0): single evaluations swing.
inline double smoothed_accuracy(const std::vector<RoundMetrics>& metrics, std::size_t round) {
  const std::size_t first = round < 2 ? 0 : round - 2;
  double sum = 0;
  for (std::size_t i = first; i <= round; ++i) sum += metrics[i].accuracy;
  return sum / static_cast<double>(round - first + 1);
}

/// The first round in which the mean of the last three accuracies is at the target; the last round
/// of a shorter run has as many as there are.
inline std::optional<std::size_t> round_at_target(const std::vector<RoundMetrics>& metrics,
                                                  double target) {
  for (std::size_t round = std::min<std::size_t>(2, metrics.size() - 1); round < metrics.size();
       ++round)
    if (smoothed_accuracy(metrics, round) >= target) return round;
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

/// summary.json of a run. `target` 0: none was asked for, and the times to it are null.
inline nlohmann::json summarise(const Settings& settings, const std::vector<RoundMetrics>& metrics,
                                double target) {
  double best = 0;
  for (const auto& round : metrics) best = std::max(best, round.accuracy);
  nlohmann::json summary{{"method", settings.method},
                         {"final_accuracy", smoothed_accuracy(metrics, metrics.size() - 1)},
                         {"best_accuracy", best},
                         {"final_personal_accuracy", metrics.back().personal_accuracy},
                         {"target_accuracy", nullptr},
                         {"sim_seconds_to_target", nullptr},
                         {"wall_seconds_to_target", nullptr},
                         {"bytes_to_target", nullptr},
                         {"sim_seconds", metrics.back().sim_seconds},
                         {"wall_seconds", metrics.back().wall_seconds},
                         {"peak_bytes", metrics.back().peak_bytes},
                         {"slow_peak_bytes", slow_peak_bytes(metrics)},
                         {"bytes_up", metrics.back().bytes_up},
                         {"bytes_down", metrics.back().bytes_down},
                         {"cost_model", cost_model},
                         {"settings", settings}};
  if (target <= 0) return summary;
  summary["target_accuracy"] = target;
  if (const auto round = round_at_target(metrics, target)) {
    summary["sim_seconds_to_target"] = metrics[*round].sim_seconds;
    summary["wall_seconds_to_target"] = metrics[*round].wall_seconds;
    summary["bytes_to_target"] = metrics[*round].bytes_up + metrics[*round].bytes_down;
  }
  return summary;
}

/// One run as it goes into the picture.
struct Curve {
  std::string name;
  std::vector<RoundMetrics> metrics;
};

/// Draws accuracy against simulated time, and beside it, when there are two runs, the second's
/// seconds, bytes and memory as shares of the first's. Says so and goes on without gnuplot.
inline void draw(const std::filesystem::path& path, const std::vector<Curve>& curves,
                 double target) {
  std::ostringstream plot;
  const bool pair = curves.size() == 2;
  plot << "set terminal pngcairo size " << (pair ? "1200,480" : "800,480")
       << " font 'sans,11' enhanced\nset output '" << path.string() << "'\n";
  for (std::size_t i = 0; i < curves.size(); ++i) {
    plot << "$run" << i << " << EOD\n";
    for (std::size_t round = 0; round < curves[i].metrics.size(); ++round)
      plot << curves[i].metrics[round].sim_seconds << ' ' << curves[i].metrics[round].accuracy
           << ' ' << smoothed_accuracy(curves[i].metrics, round) << '\n';
    plot << "EOD\n";
  }
  const char* colours[] = {"#7f7f7f", "#d1495b"};
  if (pair) plot << "set multiplot\nset size 0.66,1\nset origin 0,0\n";
  plot << "set key bottom right\nset grid ytics lc '#dddddd'\nset border 3\nset tics nomirror\n"
       << "set xlabel 'simulated seconds'\nset ylabel 'accuracy on the test set'\nset xrange "
          "[0:*]\n";
  if (target > 0)
    plot << "set arrow 1 from graph 0, first " << target << " to graph 1, first " << target
         << " nohead dt 2 lc '#999999'\n";
  plot << "plot ";
  for (std::size_t i = 0; i < curves.size(); ++i)
    plot << (i ? ", " : "") << "$run" << i << " using 1:2 with points pt 7 ps 0.5 lc '"
         << colours[i] << "' notitle, $run" << i << " using 1:3 with lines lw 2.5 lc '"
         << colours[i] << "' title '" << curves[i].name << " (mean of three rounds)'";
  plot << '\n';
  if (pair) {
    const auto share = [&](const auto& value) {
      return 100 * value(curves[1].metrics) / value(curves[0].metrics);
    };
    const auto share_at_target = [&](const auto& value) {
      return share([&](const std::vector<RoundMetrics>& metrics) {
        const auto round = round_at_target(metrics, target);
        return round ? value(metrics[*round]) : std::nan("");
      });
    };
    const auto bar = [&](int place, double height, const std::string& label) {
      plot << place << ' ' << (std::isfinite(height) ? height : 0) << " \"" << label
           << (std::isfinite(height) ? "" : "\\n(not reached)") << "\"\n";
    };
    plot << "unset arrow 1\nset size 0.34,1\nset origin 0.66,0\nunset key\nunset xlabel\n"
         << "set ylabel '" << curves[1].name << " as % of " << curves[0].name << "'\n"
         << "set bmargin 4\nset yrange [0:*]\nset offsets 0,0,12,0\nset xrange [-0.6:2.6]\nset "
            "boxwidth 0.6\nset style fill solid\n"
         << "set arrow 2 from -0.6,100 to 2.6,100 nohead dt 2 lc '#999999'\n$bars << EOD\n";
    bar(0, share_at_target([](const RoundMetrics& at) { return at.sim_seconds; }),
        "time to\\ntarget");
    bar(1, share(slow_peak_bytes), "memory of\\nslow devices");
    bar(2, share_at_target([](const RoundMetrics& at) {
          return static_cast<double>(at.bytes_up + at.bytes_down);
        }),
        "bytes to\\ntarget");
    plot << "EOD\n"
         << "plot $bars using 1:2:xtic(3) with boxes lc '#d1495b', '' using "
            "1:2:($2 > 0 ? sprintf('%.0f',$2) : '') with labels offset 0,0.7\nunset multiplot\n";
  }
  std::unique_ptr<FILE, int (*)(FILE*)> gnuplot(popen("gnuplot 2>/dev/null", "w"), pclose);
  const std::string script = plot.str();
  const bool written =
      gnuplot && std::fwrite(script.data(), 1, script.size(), gnuplot.get()) == script.size();
  const bool drawn = written && pclose(gnuplot.release()) == 0;
  if (!drawn) std::cout << path.string() << " was not drawn: it needs gnuplot\n";
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

  void round(const RoundMetrics& metrics) {
    if (terminal_) std::cout << "\r\033[K";
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
  static std::size_t filled(double share) { return static_cast<std::size_t>(24 * share); }

  std::string method_;
  bool terminal_;
  std::optional<double> first_share_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};
