// classify IMAGE.ppm...: the labels and scores of images, with a model that vcompress made. The best
// classes, the labels above a threshold, every number, or the share of the pixels that each class
// has, as the model's task is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend.hpp"
#include "vcompress/mask.hpp"
#include "vcompress/preprocess.hpp"
#include "vcompress/sha256.hpp"
#include "vcompress_classify.h"

namespace {

const char kUsage[] =
    "usage: classify [--runtime NAME] [--engine FILE] [--top N] [--threshold P]\n"
    "                [--threads N] [--mask FILE.pgm] IMAGE.ppm...\n"
    "runtimes built in:"
#ifdef WITH_OPENVINO
    " openvino"
#endif
#ifdef WITH_ONNXRUNTIME
    " onnxruntime"
#endif
#ifdef WITH_TENSORRT
    " tensorrt (with --engine)"
#endif
    "\n";

struct Arguments {
  std::string runtime;
  std::filesystem::path engine;
  int top = 5;
  double threshold = 0.5;
  int threads = 0;
  std::string mask;
  std::vector<std::string> images;
};

int positive(const std::string &text) {
  char *end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 1 || value > 1000000)
    throw std::invalid_argument("'" + text + "': expected a number of 1 or more");
  return static_cast<int>(value);
}

double probability(const std::string &text) {
  char *end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= 0 && value <= 1))
    throw std::invalid_argument("'" + text + "': expected a probability from 0 to 1");
  return value;
}

Arguments parse(int argc, char **argv) {
  Arguments found;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.rfind("--", 0) != 0) {
      found.images.push_back(flag);
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(flag + " needs a value\n" + kUsage);
    const std::string value = argv[++i];
    if (flag == "--runtime")
      found.runtime = value;
    else if (flag == "--engine")
      found.engine = value;
    else if (flag == "--top")
      found.top = positive(value);
    else if (flag == "--threshold")
      found.threshold = probability(value);
    else if (flag == "--threads")
      found.threads = positive(value);
    else if (flag == "--mask")
      found.mask = value;
    else
      throw std::invalid_argument(flag + ": no such option\n" + kUsage);
  }
  if (found.images.empty()) throw std::invalid_argument(kUsage);
  if (found.runtime.empty())
#if defined(WITH_OPENVINO)
    found.runtime = "openvino";
#elif defined(WITH_ONNXRUNTIME)
    found.runtime = "onnxruntime";
#else
    found.runtime = "tensorrt";
#endif
  return found;
}

std::vector<unsigned char> read(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be opened");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The embedded model, or the file beside the executable: it must be the one this was built for.
[[maybe_unused]] std::vector<unsigned char> onnx_bytes(const vcompress_model &model, const char *self) {
  if (model.data != nullptr) return {model.data, model.data + model.bytes};
  std::error_code failed;
  auto here = std::filesystem::read_symlink("/proc/self/exe", failed);
  if (failed) here = self;
  const auto path = here.parent_path() / model.file;
  auto bytes = read(path);
  if (vcompress::sha256(bytes.data(), bytes.size()) != model.sha256)
    throw std::runtime_error(path.string() +
                             ": not the model that this application was built for (its SHA-256 "
                             "differs)");
  return bytes;
}

std::unique_ptr<classify::Backend> open(const Arguments &arguments, const vcompress_model &info,
                                        [[maybe_unused]] const char *self) {
  classify::Model model{{}, info.input, info.channels, info.height, info.width, arguments.threads};
  const std::string &name = arguments.runtime;
#ifdef WITH_TENSORRT
  if (name == "tensorrt") {
    if (arguments.engine.empty())
      throw std::invalid_argument("tensorrt runs an engine: give --engine FILE");
    model.bytes = read(arguments.engine);
    return classify::open_tensorrt(model);
  }
#endif
  if (!arguments.engine.empty())
    throw std::invalid_argument("--engine belongs to --runtime tensorrt");
#ifdef WITH_OPENVINO
  if (name == "openvino") {
    model.bytes = onnx_bytes(info, self);
    return classify::open_openvino(model);
  }
#endif
#ifdef WITH_ONNXRUNTIME
  if (name == "onnxruntime") {
    model.bytes = onnx_bytes(info, self);
    return classify::open_onnxruntime(model);
  }
#endif
  throw std::invalid_argument("--runtime " + name + ": not built in\n" + kUsage);
}

// What the outputs come to: probabilities, or the numbers themselves.
std::vector<double> scores_of(const vcompress_model &model, const std::vector<float> &outputs) {
  std::vector<double> scores(outputs.begin(), outputs.end());
  for (double score : scores)
    if (!std::isfinite(score)) throw std::runtime_error("the model gives NaN or infinity");
  if (model.scores == VCOMPRESS_SIGMOID)
    for (double &score : scores) score = 1 / (1 + std::exp(-score));
  if (model.scores == VCOMPRESS_SOFTMAX) {
    const double largest = *std::max_element(scores.begin(), scores.end());
    for (double &score : scores) score = std::exp(score - largest);
    const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
    for (double &score : scores) score /= sum;
  }
  return scores;
}

// The class of each pixel of the image, from maps of logits or of classes.
vcompress::Mask mask_of(const vcompress_model &model, const classify::Output &output,
                        const vcompress::Image &image) {
  auto size = [&](std::size_t i) { return static_cast<int>(output.shape[i]); };
  const std::size_t axes = output.shape.size();
  if (axes == 4 && size(1) == static_cast<int>(model.label_count))
    return vcompress::mask_of_logits(model, output.values.data(), size(1), size(2), size(3),
                                     image.width, image.height);
  if (axes == 3)
    return vcompress::mask_of_classes(model, output.values.data(), size(1), size(2), image.width,
                                      image.height);
  throw std::runtime_error("the model gives no map for each label and none of classes");
}

// The share of the pixels that each class has.
std::vector<double> shares_of(const vcompress_model &model, const vcompress::Mask &mask) {
  std::vector<double> counts(model.label_count, 0.0);
  for (std::uint8_t number : mask.classes)
    if (number < counts.size()) ++counts[number];
  const double seen = std::accumulate(counts.begin(), counts.end(), 0.0);
  if (seen > 0)
    for (double &count : counts) count /= seen;
  return counts;
}

void write_pgm(const std::string &path, const vcompress::Mask &mask) {
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << mask.width << ' ' << mask.height << "\n255\n";
  file.write(reinterpret_cast<const char *>(mask.classes.data()),
             static_cast<std::streamsize>(mask.classes.size()));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

// The labels that are shown, in their order: the best, those above the threshold, those that are
// somewhere, or all.
std::vector<std::size_t> chosen(const std::vector<double> &scores, const vcompress_model &model,
                                const Arguments &arguments) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (model.scores == VCOMPRESS_VALUES) return order;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  if (model.scores == VCOMPRESS_MAPS)
    order.erase(std::find_if(order.begin(), order.end(), [&](std::size_t i) { return scores[i] == 0; }),
                order.end());
  else if (model.scores == VCOMPRESS_SOFTMAX)
    order.resize(std::min(order.size(), static_cast<std::size_t>(arguments.top)));
  else
    order.erase(std::find_if(order.begin(), order.end(),
                             [&](std::size_t i) { return scores[i] <= arguments.threshold; }),
                order.end());
  return order;
}

void show(const std::vector<double> &scores, const vcompress_model &model,
          const Arguments &arguments) {
  for (std::size_t i : chosen(scores, model, arguments)) {
    std::string label = model.labels[i];  // on one line, whatever it holds
    for (char &c : label)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    std::printf(model.scores == VCOMPRESS_VALUES ? "%.7g\t%zu\t%s\n" : "%.7f\t%zu\t%s\n",
                scores[i], i, label.c_str());
  }
}

}  // namespace

int main(int argc, char **argv) {
  try {
    const vcompress_model &model = vcompress_classify;
    const Arguments arguments = parse(argc, argv);
    if (!arguments.mask.empty() &&
        (model.scores != VCOMPRESS_MAPS || arguments.images.size() != 1))
      throw std::invalid_argument("--mask is for one image and a model that gives pixels a class");
    const auto backend = open(arguments, model, argv[0]);
    for (const std::string &path : arguments.images) {
      const auto image = vcompress::read_pnm(path);
      const auto output = backend->run(vcompress::preprocess(model, image));
      if (model.scores == VCOMPRESS_MAPS) {
        const auto mask = mask_of(model, output, image);
        if (!arguments.mask.empty()) write_pgm(arguments.mask, mask);
        std::printf("%s\n", path.c_str());
        show(shares_of(model, mask), model, arguments);
        continue;
      }
      if (output.values.size() != model.label_count)
        throw std::runtime_error("the model has another number of outputs than labels");
      std::printf("%s\n", path.c_str());
      show(scores_of(model, output.values), model, arguments);
    }
  } catch (const std::exception &error) {
    std::cerr << "classify: " << error.what() << '\n';
    return 2;
  }
  return 0;
}
