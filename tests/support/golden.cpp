#include "support/golden.h"

#include "store/file.h"
#include "support/catch.h"

#include <cstdlib>

namespace lamina::test {

std::string golden_path(const std::string& name) {
    return std::string(LAMINA_GOLDEN_FOLDER) + "/" + name;
}

void check_golden(const std::string& name, std::span<const std::byte> bytes) {
    if (std::getenv("LAMINA_REWRITE_GOLDEN")) {
        store::write_file_atomically(golden_path(name), bytes);
        WARN("golden file " << name << " was rewritten, not compared");
        return;
    }
    const auto golden = store::read_file(golden_path(name), 64 << 20);
    const auto differs = std::mismatch(golden.begin(), golden.end(), bytes.begin(), bytes.end());
    INFO("golden file " << name << " differs at offset " << differs.first - golden.begin());
    CHECK((differs.first == golden.end() && differs.second == bytes.end()));
}

}  // namespace lamina::test
