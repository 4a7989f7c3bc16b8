#include "support/prefixes.h"

#include "support/temp_dir.h"

namespace lamina::test {

Prefixes::Prefixes(std::uint32_t seed, unsigned steps, const MemoryView& view) {
    const TempDir folder;
    KeptMount mount(folder.path(), view);
    RandomUser user(seed);
    texts_.push_back(text_of(mount.state()));
    for (unsigned step = 0; step < steps; ++step) {
        (void)user.step(mount);
        texts_.push_back(text_of(mount.state()));
    }
}

std::optional<std::size_t> Prefixes::find(const std::string& text) const {
    for (std::size_t step = texts_.size(); step-- > 0;) {
        if (texts_[step] == text) return step;
    }
    return std::nullopt;
}

}  // namespace lamina::test
