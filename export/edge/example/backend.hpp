// A runtime that runs a model: one function and one small class for each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace classify {

// What a model gives for one image; numbers of classes as floats.
struct Output {
  std::vector<float> values;
  std::vector<std::int64_t> shape;
};

// Runs one image at a time: [1, channels, height, width] float32 in.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Output run(const std::vector<float> &input) = 0;
};

struct Model {
  std::vector<unsigned char> bytes;  // ONNX, or an engine for TensorRT
  std::string input;
  int channels, height, width;
  int threads;  // 0 leaves the choice to the runtime
};

#ifdef WITH_OPENVINO
std::unique_ptr<Backend> open_openvino(const Model &model);
#endif
#ifdef WITH_ONNXRUNTIME
std::unique_ptr<Backend> open_onnxruntime(const Model &model);
#endif
#ifdef WITH_TENSORRT
std::unique_ptr<Backend> open_tensorrt(const Model &model);
#endif

}  // namespace classify
