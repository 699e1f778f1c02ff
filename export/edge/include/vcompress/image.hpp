// An 8-bit image, and a reader of binary PPM (P6) and PGM (P5). C++17, no dependency.
#pragma once

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace vcompress {

struct Image {
  int width = 0, height = 0;
  int channels = 3;  // 3: red, green, blue; 1: grey
  std::vector<std::uint8_t> pixels;  // [height, width, channels]
};

// Reads a binary PPM or PGM with 8 bits a channel. Throws std::runtime_error for anything else.
inline Image read_pnm(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  char magic[2] = {0, 0};
  file.read(magic, 2);
  if (!file || magic[0] != 'P' || (magic[1] != '5' && magic[1] != '6'))
    throw std::runtime_error(path + ": expected a binary PPM or PGM (P6 or P5)");
  auto number = [&]() {
    int c = file.get();
    while (c == '#' || std::isspace(c)) {
      if (c == '#')
        while (c != '\n' && c != EOF) c = file.get();
      else
        c = file.get();
    }
    long value = 0;
    int digits = 0;
    for (; c >= '0' && c <= '9' && digits < 7; c = file.get(), ++digits) value = value * 10 + c - '0';
    if (digits == 0 || !std::isspace(c)) throw std::runtime_error(path + ": a damaged header");
    return value;
  };
  const long width = number(), height = number(), largest = number();
  if (width < 1 || height < 1 || width > 65535 || height > 65535)
    throw std::runtime_error(path + ": its size is not from 1 to 65535");
  if (largest != 255) throw std::runtime_error(path + ": expected 8 bits a channel (255)");
  Image image;
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.channels = magic[1] == '6' ? 3 : 1;
  // Row by row: a header that promises gigabytes costs no more than the file really holds.
  const std::size_t row = static_cast<std::size_t>(width) * image.channels;
  for (long y = 0; y < height; ++y) {
    image.pixels.resize(row * (y + 1));
    file.read(reinterpret_cast<char *>(image.pixels.data() + row * y),
              static_cast<std::streamsize>(row));
    if (!file) throw std::runtime_error(path + ": the file is cut short");
  }
  return image;
}

}  // namespace vcompress
