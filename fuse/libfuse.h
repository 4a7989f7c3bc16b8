#pragma once

// The one place that includes libfuse and says which of its interfaces we were written for.
#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
