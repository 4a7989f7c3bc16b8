#include "support/temp_dir.h"

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace lamina::test {

namespace {

std::string new_folder() {
    const char* const base = std::getenv("TMPDIR");
    std::string path = std::string(base ? base : "/var/tmp") + "/lamina-test-XXXXXX";
    if (!::mkdtemp(path.data())) throw std::runtime_error("cannot make " + path);
    return path;
}

}  // namespace

TempDir::TempDir() : path_(new_folder()) {}

TempDir::TempDir(const std::string& parent) : path_(parent + "/lamina-test-XXXXXX") {
    if (!::mkdtemp(path_.data())) path_ = new_folder();
}

TempDir::~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

}  // namespace lamina::test
