#include "support/temp_dir.h"

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace lamina::test {

TempDir::TempDir() {
    const char* const base = std::getenv("TMPDIR");
    path_ = std::string(base ? base : "/var/tmp") + "/lamina-test-XXXXXX";
    if (!::mkdtemp(path_.data())) throw std::runtime_error("cannot make " + path_);
}

TempDir::~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

}  // namespace lamina::test
