/* What an application knows about a bundle's model at compile time. C99 and C++11. */
#ifndef VCOMPRESS_MODEL_H
#define VCOMPRESS_MODEL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum vcompress_interpolation {
  VCOMPRESS_NEAREST = 0,
  VCOMPRESS_BILINEAR = 1, /* with antialiasing, as Pillow does it */
  VCOMPRESS_BICUBIC = 2
};

/* What the outputs, one or one map for each label, come to. */
enum vcompress_scores {
  VCOMPRESS_SOFTMAX = 0, /* one label is right: a softmax gives its probability */
  VCOMPRESS_SIGMOID = 1, /* any number of labels are: a sigmoid of each output */
  VCOMPRESS_VALUES = 2,  /* numbers in the unit of their label, as they are */
  VCOMPRESS_MAPS = 3     /* a class for each pixel: see mask.hpp */
};

/* The header that vcompress_add_model generates defines one of these as `vcompress_NAME`. */
typedef struct vcompress_model {
  const char *name;
  const char *file;          /* the model's file name, beside the executable unless embedded */
  const char *sha256;        /* of the model's bytes, 64 hexadecimal digits */
  size_t bytes;              /* of the model */
  const unsigned char *data; /* the model itself where it is embedded, else NULL */

  const char *input; /* name of the ONNX input, [batch, channels, height, width] float32 */
  int channels, height, width;

  int resize; /* shorter side before the centre crop, pixels; 0 resizes straight to the input */
  enum vcompress_interpolation interpolation;
  const float *mean; /* one a channel, on values from 0 to 1 */
  const float *std;

  size_t label_count;
  const char *const *labels; /* UTF-8, in the order of the outputs */
  enum vcompress_scores scores;
} vcompress_model;

#ifdef __cplusplus
}
#endif

#endif
