// OpenVINO on the CPU.
#include <openvino/openvino.hpp>

#include "backend.hpp"

namespace classify {

namespace {

class OpenVino : public Backend {
 public:
  explicit OpenVino(const Model &model)
      : shape_{1, static_cast<std::size_t>(model.channels), static_cast<std::size_t>(model.height),
               static_cast<std::size_t>(model.width)} {
    const std::string text(model.bytes.begin(), model.bytes.end());
    // The precision of the file is kept: the default computes in bfloat16 where the processor can.
    ov::AnyMap options{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                       ov::hint::inference_precision(ov::element::f32)};
    if (model.threads > 0) options.insert(ov::inference_num_threads(model.threads));
    auto network = core_.read_model(text, ov::Tensor());
    request_ = core_.compile_model(network, "CPU", options).create_infer_request();
  }

  std::vector<float> run(const std::vector<float> &input) override {
    ov::Tensor tensor(ov::element::f32, shape_, const_cast<float *>(input.data()));
    request_.set_input_tensor(tensor);
    request_.infer();
    const ov::Tensor output = request_.get_output_tensor();
    const float *values = output.data<float>();
    return std::vector<float>(values, values + output.get_size());
  }

 private:
  ov::Core core_;
  ov::InferRequest request_;
  ov::Shape shape_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const Model &model) {
  return std::make_unique<OpenVino>(model);
}

}  // namespace classify
