// The bundle's preprocessing: colour, resize, centre crop, normalisation. C++17, no dependency.
//
// It computes what vcompress does with Pillow 13 and numpy, to the last bit: Pillow's antialiased
// resampling of 8-bit images works in fixed point with 22 bits, first along rows, then along
// columns, and rounds to 8 bits between the two (Pillow, src/libImaging/Resample.c). From version 13
// on it takes the columns first where the height shrinks by more than twice what the width does;
// older versions differ from that by a step of 1/255 here and there, in stretched images alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "vcompress/image.hpp"
#include "vcompress/model.h"

namespace vcompress {

namespace detail {

constexpr int kPrecisionBits = 32 - 8 - 2;

inline double triangle(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

inline double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

struct Taps {
  int first = 0;
  std::vector<std::int32_t> weights;
};

// For each output position along one axis, which inputs it takes and how much of each.
inline std::vector<Taps> taps(int from, int to, vcompress_interpolation kind) {
  const double scale = static_cast<double>(from) / to;
  const double filter_scale = std::max(scale, 1.0);
  const double support = (kind == VCOMPRESS_BICUBIC ? 2.0 : 1.0) * filter_scale;
  const double step = 1.0 / filter_scale;
  std::vector<Taps> found(static_cast<std::size_t>(to));
  std::vector<double> exact;
  for (int position = 0; position < to; ++position) {
    const double center = (position + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), from) - first;
    exact.assign(static_cast<std::size_t>(count), 0.0);
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
      const double x = (i + first - center + 0.5) * step;
      exact[i] = kind == VCOMPRESS_BICUBIC ? cubic(x) : triangle(x);
      sum += exact[i];
    }
    found[position].first = first;
    found[position].weights.reserve(exact.size());
    for (double weight : exact) {
      if (sum != 0.0) weight /= sum;
      const double rounded = weight * (1 << kPrecisionBits) + (weight < 0 ? -0.5 : 0.5);
      found[position].weights.push_back(static_cast<std::int32_t>(rounded));
    }
  }
  return found;
}

inline std::uint8_t clip8(std::int32_t value) {
  return static_cast<std::uint8_t>(std::clamp(value >> kPrecisionBits, 0, 255));
}

inline Image resample_rows(const Image &image, int width, vcompress_interpolation kind) {
  Image out{width, image.height, image.channels, {}};
  const std::size_t c = image.channels;
  out.pixels.resize(static_cast<std::size_t>(width) * image.height * c);
  const auto table = taps(image.width, width, kind);
  for (int y = 0; y < image.height; ++y) {
    const std::uint8_t *row = image.pixels.data() + static_cast<std::size_t>(y) * image.width * c;
    std::uint8_t *to = out.pixels.data() + static_cast<std::size_t>(y) * width * c;
    for (const Taps &tap : table)
      for (std::size_t channel = 0; channel < c; ++channel) {
        std::int32_t sum = 1 << (kPrecisionBits - 1);
        const std::uint8_t *from = row + tap.first * c + channel;
        for (std::size_t i = 0; i < tap.weights.size(); ++i) sum += from[i * c] * tap.weights[i];
        *to++ = clip8(sum);
      }
  }
  return out;
}

inline Image resample_columns(const Image &image, int height, vcompress_interpolation kind) {
  Image out{image.width, height, image.channels, {}};
  const std::size_t row = static_cast<std::size_t>(image.width) * image.channels;
  out.pixels.resize(row * height);
  const auto table = taps(image.height, height, kind);
  std::vector<std::int32_t> sums(row);
  for (int y = 0; y < height; ++y) {
    const Taps &tap = table[y];
    std::fill(sums.begin(), sums.end(), 1 << (kPrecisionBits - 1));
    for (std::size_t i = 0; i < tap.weights.size(); ++i) {
      const std::uint8_t *from = image.pixels.data() + (tap.first + i) * row;
      for (std::size_t x = 0; x < row; ++x) sums[x] += from[x] * tap.weights[i];
    }
    std::uint8_t *to = out.pixels.data() + y * row;
    for (std::size_t x = 0; x < row; ++x) to[x] = clip8(sums[x]);
  }
  return out;
}

// Positions that nearest-neighbour scaling takes: Pillow adds the step up, and so do we.
inline std::vector<int> nearest(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  std::vector<int> found(static_cast<std::size_t>(to));
  double at = scale * 0.5;
  for (int &position : found) {
    position = std::min(static_cast<int>(at), from - 1);
    at += scale;
  }
  return found;
}

inline Image resize_nearest(const Image &image, int width, int height) {
  Image out{width, height, image.channels, {}};
  const auto columns = nearest(image.width, width), rows = nearest(image.height, height);
  out.pixels.reserve(static_cast<std::size_t>(width) * height * image.channels);
  for (int y : rows)
    for (int x : columns) {
      const auto at = (static_cast<std::size_t>(y) * image.width + x) * image.channels;
      for (int c = 0; c < image.channels; ++c) out.pixels.push_back(image.pixels[at + c]);
    }
  return out;
}

// Half of a number of pixels, rounded half to even, as Python rounds.
inline int half(int difference) {
  const int low = difference / 2;
  return difference % 2 == 0 ? low : low + low % 2;
}

}  // namespace detail

inline Image resize(const Image &image, int width, int height, vcompress_interpolation kind) {
  if (image.width == width && image.height == height) return image;
  if (kind == VCOMPRESS_NEAREST) return detail::resize_nearest(image, width, height);
  const bool columns_first =
      height < image.height && image.height - height > 2 * (image.width - width);
  Image found = image;
  if (columns_first) found = detail::resample_columns(found, height, kind);
  if (found.width != width) found = detail::resample_rows(found, width, kind);
  return found.height == height ? found : detail::resample_columns(found, height, kind);
}

// 3 or 1 channels, as the network takes them.
inline Image to_channels(const Image &image, int channels) {
  if (image.channels == channels) return image;
  Image out{image.width, image.height, channels, {}};
  const std::size_t count = static_cast<std::size_t>(image.width) * image.height;
  out.pixels.reserve(count * channels);
  for (std::size_t i = 0; i < count; ++i) {
    if (channels == 3) {
      out.pixels.insert(out.pixels.end(), 3, image.pixels[i]);
    } else {
      const std::uint8_t *p = image.pixels.data() + 3 * i;  // ITU-R 601-2, Pillow's fixed point
      const std::uint32_t grey = p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u;
      out.pixels.push_back(static_cast<std::uint8_t>(grey >> 16));
    }
  }
  return out;
}

// How the network's input lies in an image: the size that it is resized to, and what is cut out.
struct Placement {
  int width, height, left, top;
};

// Throws std::invalid_argument for an image so much longer than wide that resizing it takes all
// memory.
inline Placement placement(const vcompress_model &model, int width, int height) {
  if (model.resize == 0) return {model.width, model.height, 0, 0};
  // The longer side is cut, not rounded: torchvision's arithmetic.
  const int shorter = std::min(width, height);
  auto scaled = [&](int side) {
    const double exact = static_cast<double>(model.resize) * side / shorter;
    return side == shorter ? model.resize : static_cast<int>(exact);
  };
  if (model.resize < std::max(model.width, model.height))
    throw std::invalid_argument("preprocess: resize is smaller than the crop");
  constexpr double most_pixels = 1 << 28;  // those of the largest network input
  if (static_cast<double>(model.resize) * model.resize / shorter * std::max(width, height) >
      most_pixels)
    throw std::invalid_argument("preprocess: the image is too long and thin to be resized");
  const int across = scaled(width), down = scaled(height);
  return {across, down, detail::half(across - model.width), detail::half(down - model.height)};
}

// `image` as the network's input: [channels, height, width] float32. Throws std::invalid_argument
// for what is no image, and for one so much longer than wide that resizing it takes all memory.
inline std::vector<float> preprocess(const vcompress_model &model, const Image &image) {
  if (image.width < 1 || image.height < 1 || (image.channels != 1 && image.channels != 3) ||
      image.pixels.size() != static_cast<std::size_t>(image.width) * image.height * image.channels)
    throw std::invalid_argument("preprocess: an image with 1 or 3 channels is expected");
  Image small = to_channels(image, model.channels);
  const Placement place = placement(model, small.width, small.height);
  small = resize(small, place.width, place.height, model.interpolation);
  std::vector<float> out;
  out.reserve(static_cast<std::size_t>(model.channels) * model.height * model.width);
  for (int c = 0; c < model.channels; ++c)
    for (int y = 0; y < model.height; ++y)
      for (int x = 0; x < model.width; ++x) {
        const auto at = (static_cast<std::size_t>(y + place.top) * small.width + x + place.left);
        const float value = static_cast<float>(small.pixels[at * model.channels + c]) / 255.0f;
        out.push_back((value - model.mean[c]) / model.std[c]);
      }
  return out;
}

}  // namespace vcompress
