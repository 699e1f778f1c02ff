// ONNX Runtime on the CPU.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <stdexcept>

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

  Output run(const std::vector<float> &input) override {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value tensor =
        Ort::Value::CreateTensor<float>(memory, const_cast<float *>(input.data()), input.size(),
                                        shape_.data(), shape_.size());
    const char *const inputs[] = {input_.c_str()};
    const char *const outputs[] = {output_.c_str()};
    const auto found = session_.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
    const auto info = found.front().GetTensorTypeAndShapeInfo();
    Output output{{}, info.GetShape()};
    auto take = [&](const auto *values) {
      output.values.assign(values, values + info.GetElementCount());
    };
    switch (info.GetElementType()) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: take(found.front().GetTensorData<float>()); break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
        take(found.front().GetTensorData<std::uint8_t>());
        break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
        take(found.front().GetTensorData<std::int32_t>());
        break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
        take(found.front().GetTensorData<std::int64_t>());
        break;
      default: throw std::runtime_error("the model gives neither floats nor whole numbers");
    }
    return output;
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
