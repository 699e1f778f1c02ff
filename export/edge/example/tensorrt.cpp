// TensorRT 10 and 11 on a GPU: it runs an engine that was built before, given with --engine.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <iostream>
#include <stdexcept>

#include "backend.hpp"

namespace classify {

namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char *message) noexcept override {
    if (severity <= Severity::kERROR) std::cerr << "TensorRT: " << message << '\n';
  }
};

class Buffer {
 public:
  explicit Buffer(std::size_t bytes) { check(cudaMalloc(&address_, bytes)); }
  ~Buffer() { cudaFree(address_); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  void *get() const { return address_; }

 private:
  void *address_ = nullptr;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreate(&stream_)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class TensorRt : public Backend {
 public:
  explicit TensorRt(const Model &model) : runtime_(nvinfer1::createInferRuntime(logger_)) {
    if (!runtime_) throw std::runtime_error("TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(model.bytes.data(), model.bytes.size()));
    if (!engine_)
      throw std::runtime_error("TensorRT does not load the engine: was it built for this GPU and "
                               "this version of TensorRT?");
    context_.reset(engine_->createExecutionContext());
    if (!context_ || engine_->getNbIOTensors() != 2)
      throw std::runtime_error("expected an engine with one input and one output");
    for (int i = 0; i < 2; ++i) {
      const char *name = engine_->getIOTensorName(i);
      const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      if (engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT)
        throw std::runtime_error(std::string(name) + ": expected float32");
      (is_input ? input_ : output_) = name;
    }
    const nvinfer1::Dims4 shape(1, model.channels, model.height, model.width);
    if (!context_->setInputShape(input_.c_str(), shape))
      throw std::runtime_error("the engine was not built for a batch of one of this size");
    inputs_ = static_cast<std::size_t>(model.channels) * model.height * model.width;
    const nvinfer1::Dims found = context_->getTensorShape(output_.c_str());
    outputs_ = 1;
    for (int i = 0; i < found.nbDims; ++i) {
      outputs_ *= static_cast<std::size_t>(found.d[i]);
      shape_.push_back(found.d[i]);
    }
    device_input_ = std::make_unique<Buffer>(inputs_ * sizeof(float));
    device_output_ = std::make_unique<Buffer>(outputs_ * sizeof(float));
    if (!context_->setTensorAddress(input_.c_str(), device_input_->get()) ||
        !context_->setTensorAddress(output_.c_str(), device_output_->get()))
      throw std::runtime_error("TensorRT does not take the addresses of the tensors");
  }

  Output run(const std::vector<float> &input) override {
    std::vector<float> scores(outputs_);
    check(cudaMemcpyAsync(device_input_->get(), input.data(), inputs_ * sizeof(float),
                          cudaMemcpyHostToDevice, stream_.get()));
    if (!context_->enqueueV3(stream_.get())) throw std::runtime_error("TensorRT does not run it");
    check(cudaMemcpyAsync(scores.data(), device_output_->get(), outputs_ * sizeof(float),
                          cudaMemcpyDeviceToHost, stream_.get()));
    check(cudaStreamSynchronize(stream_.get()));
    return {scores, shape_};
  }

 private:
  // Destroyed from the last to the first: buffers and context before the engine and the runtime.
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Stream stream_;
  std::unique_ptr<Buffer> device_input_, device_output_;
  std::string input_, output_;
  std::size_t inputs_ = 0, outputs_ = 0;
  std::vector<std::int64_t> shape_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Model &model) {
  return std::make_unique<TensorRt>(model);
}

}  // namespace classify
