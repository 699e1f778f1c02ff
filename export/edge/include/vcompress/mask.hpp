// From a network's maps to the class of each pixel of the image. C++17, no dependency.
//
// It computes what vcompress does with numpy, to the last bit: bilinear means in float32, first
// along the columns, then along the rows, and of equal ones the lower class. Products are kept in
// memory before they are added, so that no compiler makes one rounding of the two.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "vcompress/model.h"
#include "vcompress/preprocess.hpp"

namespace vcompress {

// The class of each pixel, [height, width]; kUnseen where the network did not look.
struct Mask {
  int width = 0, height = 0;
  std::vector<std::uint8_t> classes;
};

constexpr std::uint8_t kUnseen = 255;

namespace detail {

// Where the pixels of the image lie among the network's outputs, along one axis.
struct Places {
  std::vector<float> at;
  std::vector<char> seen;
};

inline Places places(int outputs, int image, int scaled, int inputs, int start) {
  Places found;
  const auto scale = static_cast<float>(static_cast<double>(std::int64_t{outputs} * scaled) /
                                        static_cast<double>(std::int64_t{inputs} * image));
  const auto begin = static_cast<float>(static_cast<double>(std::int64_t{start} * outputs) / inputs);
  for (int i = 0; i < image; ++i) {
    volatile float at = scale * (static_cast<float>(i) + 0.5f);
    at = at - 0.5f;
    at = at - begin;
    const float exact = at;
    found.at.push_back(exact);
    found.seen.push_back(exact >= -0.5f && exact < static_cast<float>(outputs) - 0.5f);
  }
  return found;
}

// The two outputs around each place, and the share of the second one.
struct Pairs {
  std::vector<int> low, high;
  std::vector<float> share;
};

inline Pairs pairs(const Places &places, int outputs) {
  Pairs found;
  for (const float at : places.at) {
    const float inside = std::clamp(at, 0.0f, static_cast<float>(outputs - 1));
    const int low = static_cast<int>(inside);
    found.low.push_back(low);
    found.high.push_back(std::min(low + 1, outputs - 1));
    found.share.push_back(inside - static_cast<float>(low));
  }
  return found;
}

// one[i] * (1 - share[i]) + other[i] * share[i]; `a` and `b` hold the products.
inline void means(const float *one, const float *other, const float *share, bool alike,
                  std::size_t count, std::vector<float> &a, std::vector<float> &b, float *out) {
  for (std::size_t i = 0; i < count; ++i) a[i] = one[i] * (1.0f - share[alike ? 0 : i]);
  for (std::size_t i = 0; i < count; ++i) b[i] = other[i] * share[alike ? 0 : i];
  // The compiler must not see where these values come from.
  const volatile float *first = a.data();
  const volatile float *second = b.data();
  for (std::size_t i = 0; i < count; ++i) out[i] = first[i] + second[i];
}

inline Placement placed(const vcompress_model &model, int width, int height) {
  if (width < 1 || height < 1) throw std::invalid_argument("mask: an image has pixels");
  return placement(model, width, height);
}

inline void forget_unseen(Mask &mask, const Places &rows, const Places &columns) {
  for (int y = 0; y < mask.height; ++y)
    for (int x = 0; x < mask.width; ++x)
      if (!rows.seen[y] || !columns.seen[x])
        mask.classes[static_cast<std::size_t>(y) * mask.width + x] = kUnseen;
}

}  // namespace detail

// The mask of an image of width x height from logits [classes, rows, columns]. One logit stands for
// the second of two classes. Throws std::invalid_argument for sizes that are none, and
// std::runtime_error for NaN or infinity.
inline Mask mask_of_logits(const vcompress_model &model, const float *logits, int classes, int rows,
                           int columns, int width, int height) {
  if (classes < 1 || classes > 254 || rows < 1 || columns < 1)
    throw std::invalid_argument("mask: 1 to 254 classes and maps with pixels are expected");
  const auto place = detail::placed(model, width, height);
  const std::size_t size = static_cast<std::size_t>(rows) * columns;
  for (std::size_t i = 0; i < size * classes; ++i)
    if (!std::isfinite(logits[i])) throw std::runtime_error("the model gives NaN or infinity");
  std::vector<float> two;
  if (classes == 1) {
    two.assign(2 * size, 0.0f);
    std::copy(logits, logits + size, two.begin() + static_cast<std::ptrdiff_t>(size));
    logits = two.data();
    classes = 2;
  }
  const auto down = detail::places(rows, height, place.height, model.height, place.top);
  const auto across = detail::places(columns, width, place.width, model.width, place.left);
  const auto y_pairs = detail::pairs(down, rows), x_pairs = detail::pairs(across, columns);
  const auto count = static_cast<std::size_t>(width);
  std::vector<float> wide(count * rows * classes), one(count), other(count), a(count), b(count);
  for (std::size_t line = 0; line < static_cast<std::size_t>(rows) * classes; ++line) {
    const float *from = logits + line * columns;
    for (std::size_t x = 0; x < count; ++x) {
      one[x] = from[x_pairs.low[x]];
      other[x] = from[x_pairs.high[x]];
    }
    detail::means(one.data(), other.data(), x_pairs.share.data(), false, count, a, b,
                  wide.data() + line * count);
  }
  Mask found{width, height, std::vector<std::uint8_t>(count * height)};
  std::vector<float> best(count);
  for (int y = 0; y < height; ++y) {
    std::uint8_t *chosen = found.classes.data() + static_cast<std::size_t>(y) * count;
    for (int k = 0; k < classes; ++k) {
      const float *map = wide.data() + static_cast<std::size_t>(k) * rows * count;
      detail::means(map + y_pairs.low[y] * count, map + y_pairs.high[y] * count,
                    &y_pairs.share[y], true, count, a, b, one.data());
      for (std::size_t x = 0; x < count; ++x)
        if (k == 0 || one[x] > best[x]) {
          best[x] = one[x];
          chosen[x] = static_cast<std::uint8_t>(k);
        }
    }
  }
  detail::forget_unseen(found, down, across);
  return found;
}

// The mask of an image of width x height from the numbers of classes [rows, columns] that the file
// itself gives: each pixel takes the nearest one.
template <typename Number>
Mask mask_of_classes(const vcompress_model &model, const Number *classes, int rows, int columns,
                     int width, int height) {
  if (rows < 1 || columns < 1) throw std::invalid_argument("mask: a map with pixels is expected");
  const auto place = detail::placed(model, width, height);
  const auto down = detail::places(rows, height, place.height, model.height, place.top);
  const auto across = detail::places(columns, width, place.width, model.width, place.left);
  Mask found{width, height, {}};
  found.classes.reserve(static_cast<std::size_t>(width) * height);
  auto nearest = [](float at, int outputs) {
    return std::clamp(static_cast<int>(std::floor(at + 0.5f)), 0, outputs - 1);
  };
  for (int y = 0; y < height; ++y) {
    const Number *row = classes + static_cast<std::size_t>(nearest(down.at[y], rows)) * columns;
    for (int x = 0; x < width; ++x)
      found.classes.push_back(static_cast<std::uint8_t>(row[nearest(across.at[x], columns)]));
  }
  detail::forget_unseen(found, down, across);
  return found;
}

}  // namespace vcompress
