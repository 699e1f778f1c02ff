// OpenVINO on the CPU.
#include <openvino/openvino.hpp>

#include <cstdint>
#include <stdexcept>

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

  Output run(const std::vector<float> &input) override {
    ov::Tensor tensor(ov::element::f32, shape_, const_cast<float *>(input.data()));
    request_.set_input_tensor(tensor);
    request_.infer();
    const ov::Tensor output = request_.get_output_tensor();
    Output found{{}, {}};
    for (std::size_t size : output.get_shape())
      found.shape.push_back(static_cast<std::int64_t>(size));
    auto take = [&](const auto *values) { found.values.assign(values, values + output.get_size()); };
    const auto type = output.get_element_type();
    if (type == ov::element::f32)
      take(output.data<float>());
    else if (type == ov::element::u8)
      take(output.data<std::uint8_t>());
    else if (type == ov::element::i32)
      take(output.data<std::int32_t>());
    else if (type == ov::element::i64)
      take(output.data<std::int64_t>());
    else
      throw std::runtime_error("the model gives neither floats nor whole numbers");
    return found;
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
