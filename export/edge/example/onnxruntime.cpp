// ONNX Runtime on the CPU.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>

#include "backend.hpp"

namespace classify {

namespace {

class OnnxRuntime : public Backend {
 public:
  explicit OnnxRuntime(const Model &model)
      : input_(model.input), shape_{1, model.channels, model.height, model.width} {
    Ort::SessionOptions options;
    if (model.threads > 0) options.SetIntraOpNumThreads(model.threads);
    session_ = Ort::Session(environment_, model.bytes.data(), model.bytes.size(), options);
    Ort::AllocatorWithDefaultOptions allocator;
    output_ = session_.GetOutputNameAllocated(0, allocator).get();
  }

  std::vector<float> run(const std::vector<float> &input) override {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value tensor =
        Ort::Value::CreateTensor<float>(memory, const_cast<float *>(input.data()), input.size(),
                                        shape_.data(), shape_.size());
    const char *const inputs[] = {input_.c_str()};
    const char *const outputs[] = {output_.c_str()};
    const auto found = session_.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
    const float *values = found.front().GetTensorData<float>();
    return std::vector<float>(
        values, values + found.front().GetTensorTypeAndShapeInfo().GetElementCount());
  }

 private:
  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "vcompress"};
  Ort::Session session_{nullptr};
  std::string input_, output_;
  std::array<std::int64_t, 4> shape_;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Model &model) {
  return std::make_unique<OnnxRuntime>(model);
}

}  // namespace classify
