#pragma once

#include "store/file.h"

#include <functional>
#include <string_view>

namespace lamina::unionfs {

/// Puts the rest of the program into the background, so that the parent returns when it is ready, and not before.
///
/// Call go() before any thread is started. In the child, everything that is written to standard error until ready() is
/// the reason why it failed; the parent prints it as one line and exits with 1. The child has a session of its own.
class Background {
public:
    /// Forks; returns in the child only. `is_wanted` false: nothing happens, here or later.
    static Background go(bool is_wanted);
    /// Lets the parent exit with 0 and leaves its terminal: descriptors 0 to 2 become /dev/null.
    void ready();

private:
    explicit Background(bool is_child) : is_child_(is_child) {}
    bool is_child_ = false;
};

/// Closes every descriptor above 2 that was inherited.
void close_inherited_files();
/// Opens /dev/null for those of 0, 1, 2 that are closed, so that no file of ours gets such a number.
void fill_standard_files();

}  // namespace lamina::unionfs
