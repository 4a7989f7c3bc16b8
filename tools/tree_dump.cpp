#include "store/error.h"
#include "store/file.h"
#include "store/tree_format.h"
#include "store/tree_text.h"

#include <cstdio>
#include <cstring>
#include <iostream>

// tree_dump [--chunks] [--check] FILE: an image tree as text. Two dumps compare with diff.
//
// The tree's digest is taken from its header, so this shows also a tree whose name is wrong.

namespace {

using namespace lamina::store;

struct Arguments {
    TreeTextOptions options;
    bool is_check = false;
    std::string path;
};

TreeDigest digest_in(const std::string& path) {
    const UniqueFd fd = open_read(path);
    tree_format::Header header;
    read_exact(fd.get(), 0, std::as_writable_bytes(std::span(&header, 1)), path);
    if (header.magic != tree_format::kMagic) throw Error(Errc::malformed, path + ": not an image tree");
    if (header.header_bytes > tree_format::kMaxHeaderBytes)
        throw Error(Errc::corrupt, path + ": impossible header size");
    std::vector<std::byte> head(header.header_bytes);
    read_exact(fd.get(), 0, head, path);
    return TreeDigest{Digest::of(head)};
}

int run(const Arguments& arguments) {
    const TreeDigest digest = digest_in(arguments.path);
    const auto tree = ImageTree::open(arguments.path, digest);
    if (arguments.is_check) {
        const auto problems = tree->check();
        for (const std::string& problem : problems) std::cout << problem << '\n';
        if (!problems.empty()) return 1;
    }
    std::cout << "# " << digest.digest.text() << ", " << tree->inode_count() << " inodes, " << tree->logical_bytes()
              << " bytes in files, tree of " << file_size(arguments.path) << " bytes\n";
    describe_tree(*tree, arguments.options, [](const std::string& line) { std::cout << line << '\n'; });
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--chunks") {
            arguments.options.with_chunks = true;
        } else if (word == "--check") {
            arguments.is_check = true;
        } else {
            arguments.path = word;
        }
    }
    if (arguments.path.empty()) {
        std::fprintf(stderr, "usage: tree_dump [--chunks] [--check] FILE\n");
        return 2;
    }
    try {
        return run(arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "tree_dump: %s\n", error.what());
        return 1;
    }
}
