#include "store/chunk_index.h"
#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_format.h"

#include <charconv>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>

// pack_dump [--chunks] [--check] PACK: a pack as text, a line for each frame, or for each chunk too.
// pack_dump [--check] FOLDER: the chunk index of a packs folder, a line for each segment and pack.
//
// --check reads all of it and prints the problems first; exit 1 if there are any.

namespace {

using namespace lamina::store;

struct Arguments {
    bool with_chunks = false;
    bool is_check = false;
    std::string path;
};

/// The number in the pack's file name.
std::uint32_t number_in(const std::string& path) {
    const std::string name = path.substr(path.find_last_of('/') + 1);
    constexpr std::string_view kPrefix = "pack-";
    std::uint32_t number = 0;
    if (name.starts_with(kPrefix)) {
        std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), number);
        if (name == pack_path("", number).substr(1)) return number;
    }
    throw Error(Errc::malformed, path + ": not named like a pack (" + pack_path("", 1).substr(1) + ")");
}

int print_problems(const std::vector<std::string>& problems) {
    for (const std::string& problem : problems) std::cout << problem << '\n';
    return problems.empty() ? 0 : 1;
}

int dump_pack(const Arguments& arguments) {
    const std::uint32_t number = number_in(arguments.path);
    const std::string folder = folder_of(arguments.path);
    const int status = arguments.is_check ? print_problems(check_pack(folder, number, true, nullptr)) : 0;
    const auto chunks = read_pack_table(folder, number);
    std::uint64_t raw_bytes = 0;
    for (const NewChunk& chunk : chunks) raw_bytes += chunk.place.size_bytes;
    std::cout << "# pack " << number << ", " << chunks.size() << " chunks of " << raw_bytes << " bytes in "
              << file_size(arguments.path) << " bytes\n";
    const UniqueFd fd = open_read(arguments.path);
    std::uint64_t frame_offset = 0;
    for (const NewChunk& chunk : chunks) {
        if (chunk.place.frame_offset_bytes != frame_offset) {
            frame_offset = chunk.place.frame_offset_bytes;
            pack_format::FrameHeader header;
            read_exact(fd.get(), frame_offset, std::as_writable_bytes(std::span(&header, 1)), arguments.path);
            std::cout << "frame " << frame_offset << " size " << header.frame_size_bytes << " raw "
                      << header.raw_size_bytes << " chunks " << header.chunk_count
                      << (header.codec == pack_format::Codec::stored ? " stored\n" : " zstd\n");
        }
        if (!arguments.with_chunks) continue;
        std::cout << "  " << chunk.id.digest.hex() << " at " << chunk.place.offset_in_frame_bytes << " size "
                  << chunk.place.size_bytes << '\n';
    }
    return status;
}

int dump_index(const Arguments& arguments) {
    const int status = arguments.is_check ? print_problems(check_chunk_index(arguments.path)) : 0;
    const ChunkIndex index(arguments.path);
    const auto snapshot = index.snapshot();
    std::cout << "# generation " << snapshot->generation << ", " << snapshot->segments.size() << " segments, "
              << snapshot->packs.size() << " packs\n";
    for (const auto& segment : snapshot->segments) {
        std::cout << "segment " << segment->number() << " chunks " << segment->entry_count() << " size "
                  << segment->file_bytes() << '\n';
    }
    for (const auto& [pack, position] : snapshot->packs) {
        std::cout << "pack " << pack << " in segment " << snapshot->segments[position]->number() << '\n';
    }
    return status;
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--chunks") {
            arguments.with_chunks = true;
        } else if (word == "--check") {
            arguments.is_check = true;
        } else {
            arguments.path = word;
        }
    }
    if (arguments.path.empty()) {
        std::fputs("usage: pack_dump [--chunks] [--check] PACK | [--check] PACKS_FOLDER\n", stderr);
        return 2;
    }
    try {
        return arguments.path.ends_with(".lpk") ? dump_pack(arguments) : dump_index(arguments);
    } catch (const Error& error) {  // main() of a program.
        std::fprintf(stderr, "pack_dump: %s\n", error.what());
        return 1;
    }
}
