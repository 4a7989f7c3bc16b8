#include "store/error.h"
#include "store/file.h"
#include "store/image_tree.h"
#include "store/tree_text.h"
#include "support/tree_bytes.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

// An image tree out of any bytes: opened as it is, and once more with digests that fit, since a digest that is always
// wrong would keep the fuzzer at the door. Nothing may crash; a tree that check() finds sound must be readable to the
// end; and each name that a listing has must be found by a lookup.

namespace {

using namespace lamina;

void check(bool is_so) {
    if (!is_so) std::abort();
}

void look_up_all(const store::ImageTree& tree) {
    for (store::TreeIno ino = 1; ino <= tree.inode_count(); ++ino) {
        if (tree.attributes(ino).type != store::FileType::directory) continue;
        for (std::uint32_t i = 0; i < tree.entry_count(ino); ++i) {
            const store::TreeName found = tree.entry(ino, i);
            const auto again = tree.lookup(ino, found.name);
            check(again && again->ino == found.ino);
        }
    }
}

void read_tree(const std::string& path, const store::TreeDigest& digest) {
    bool is_sound = false;
    try {
        const auto tree = store::ImageTree::open(path, digest);
        is_sound = tree->check().empty();
        std::uint64_t text_bytes = 0;
        store::describe_tree(*tree, {.with_chunks = true}, [&](const std::string& line) {
            text_bytes += line.size();
            // Directories that share their names are a forgery, which makes no call endless but the whole long.
            if (!is_sound && text_bytes > 100'000) throw store::Error(store::Errc::cancelled, "enough");
        });
        if (is_sound) look_up_all(*tree);
    } catch (const store::Error&) {  // The answer to most of what comes here.
        check(!is_sound);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string bytes(reinterpret_cast<const char*>(data), size);
    const store::UniqueFd file(::memfd_create("tree", MFD_CLOEXEC));
    const std::string path = "/proc/self/fd/" + std::to_string(file.get());
    for (const bool is_signed : {false, true}) {
        const store::TreeDigest digest =
            is_signed ? test::sign_tree(bytes) : store::TreeDigest{store::Digest::of(store::as_bytes(bytes))};
        check(::pwrite(file.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
        read_tree(path, digest);
    }
    return 0;
}
