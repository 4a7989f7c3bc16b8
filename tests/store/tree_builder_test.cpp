#include "store/tree_builder.h"

#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "support/catch.h"
#include "support/layer_text.h"
#include "support/temp_dir.h"

using namespace lamina;
using test::built_tree;
using test::layer_of;

namespace {

struct Case {
    const char* name;
    std::vector<const char*> layers;  // Bottom first; the words are those of layer_text.h.
    const char* expected;             // A tree, or "malformed: " and a part of the message.
};

std::string result_of(const Case& example, const std::string& folder) {
    std::vector<test::Layer> layers;
    for (const char* text : example.layers) layers.push_back(layer_of(text));
    try {
        const auto tree = built_tree(layers, folder);
        const auto problems = tree->check();
        return problems.empty() ? test::text_of(*tree) : "problem: " + problems.front();
    } catch (const store::Error& error) {
        return std::string(store::errc_name(error.code())) + ": " + error.what();
    }
}

void check_cases(const std::vector<Case>& cases) {
    const test::TempDir folder;
    for (const Case& example : cases) {
        CAPTURE(example.name, example.layers);
        const std::string result = result_of(example, folder.path());
        const std::string expected = example.expected;
        if (!expected.starts_with("malformed: ")) {
            CHECK(result == expected);
            continue;
        }
        CHECK_THAT(result, Catch::Matchers::ContainsSubstring(expected.substr(11)));
        CHECK(result.starts_with("malformed: layer "));
    }
}

}  // namespace

TEST_CASE("layers replace, and directories merge", "[store][tree]") {
    check_cases({
        {"no layer at all is an empty root", {}, ""},
        {"an empty layer changes nothing", {"a=x", ""}, "a=x"},
        {"one layer is its entries", {"d/ d/f=x l@d/f p|"}, "d/ d/f=x l@d/f p|"},
        {"names come back in byte order", {"b= a.b= a/ a/c= a-="}, "a/ a/c= a-= a.b= b="},
        {"an upper file replaces a lower one", {"a=old", "a=new"}, "a=new"},
        {"an upper directory adds to a lower one", {"d/ d/a=x", "d/ d/b=y"}, "d/ d/a=x d/b=y"},
        {"a directory over a directory changes its attributes", {"d/:700 d/a=x", "d/:711"}, "d/:711 d/a=x"},
        {"an entry in a directory leaves its attributes alone", {"d/:700 d/a=x", "d/b=y"}, "d/:700 d/a=x d/b=y"},
        {"a file over a directory removes all below it", {"d/ d/a=x d/e/ d/e/f=y", "d=new"}, "d=new"},
        {"a link over a directory removes all below it", {"d/ d/a=x", "d@e"}, "d@e"},
        {"a directory over a file replaces it", {"d=old", "d/ d/a=x"}, "d/ d/a=x"},
        {"a directory over a link replaces it, and the link's target stays",
         {"e/ e/a=x d@e", "d/ d/b=y"},
         "d/ d/b=y e/ e/a=x"},
        {"a file over a link replaces the link, not its target", {"t=old l@t", "l=new"}, "l=new t=old"},
        {"a link over a file", {"a=old", "a@b"}, "a@b"},
        {"a fifo over a file", {"a=old", "a|"}, "a|"},
        {"a file, a directory and a file again", {"a=one", "a/ a/b=two", "a=three"}, "a=three"},
        {"what returns after a file over a directory does not bring back the old children",
         {"d/ d/a=x", "d=y", "d/ d/b=z"},
         "d/ d/b=z"},
        {"missing parents are made", {"a/b/c=x"}, "a/! a/b/! a/b/c=x"},
        {"a parent that comes later describes it", {"a/b=x a/"}, "a/ a/b=x"},
        {"the root's attributes are those of the last layer that has them",
         {"/:700 a=x", "b=y", "/:711"},
         "/:711 a=x b=y"},
        {"many layers", {"a=one", "b=one", "a=two", "c/ c/d=one", "c/d=three"}, "a=two b=one c/ c/d=three"},
    });
}

TEST_CASE("the last of duplicate entries wins", "[store][tree]") {
    check_cases({
        {"file and file", {"a=one a=two"}, "a=two"},
        {"directory and directory keep what lies in it", {"d/:700 d/a=x d/:711"}, "d/:711 d/a=x"},
        {"file and directory", {"d=x d/ d/a=y"}, "d/ d/a=y"},
        {"directory and file", {"d/ d/a=x d=y"}, "d=y"},
        {"directory, file, directory: the first one's children are gone", {"d/ d/a=x d=y d/ d/b=z"}, "d/ d/b=z"},
        {"directory, file, directory upon a lower directory merge with that",
         {"d/ d/low=a", "d/ d/a=x d=y d/ d/b=z"},
         "d/ d/b=z d/low=a"},
        {"a made parent and a file", {"d/a=x d=y"}, "d=y"},
        {"deep: an entry goes to the new directory after the old was replaced",
         {"d/e/a=x d=y d/ d/e/ d/e/b=z"},
         "d/ d/e/ d/e/b=z"},
        {"link and file", {"l@t l=x"}, "l=x"},
        {"root and root", {"/:700 /:711"}, "/:711"},
    });
}

TEST_CASE("a whiteout removes a lower name and nothing of its own layer", "[store][tree]") {
    check_cases({
        {"a file", {"a=x b=y", ".wh.a"}, "b=y"},
        {"a link, not its target", {"l@t t=x", ".wh.l"}, "t=x"},
        {"a directory with all below", {"d/ d/a=x d/e/ d/e/b=y", ".wh.d"}, ""},
        {"in a directory, which keeps its attributes", {"d/:700 d/a=x d/b=y", "d/.wh.a"}, "d/:700 d/b=y"},
        {"in a directory that the layer describes", {"d/:700 d/a=x d/b=y", "d/ d/.wh.a"}, "d/ d/b=y"},
        {"before the file that comes again", {"a=old", ".wh.a a=new"}, "a=new"},
        {"after the file that comes again", {"a=old", "a=new .wh.a"}, "a=new"},
        {"before the directory that comes again", {"d/ d/a=x", ".wh.d d/ d/b=y"}, "d/ d/b=y"},
        {"after the directory that comes again", {"d/ d/a=x", "d/ d/b=y .wh.d"}, "d/ d/b=y"},
        {"amid the directory that comes again", {"d/ d/a=x", "d/ .wh.d d/b=y"}, "d/ d/b=y"},
        {"a directory that comes again without being described is a new one",
         {"d/:700 d/a=x", ".wh.d d/b=y"},
         "d/! d/b=y"},
        {"a directory becomes a file", {"d/ d/a=x", ".wh.d d=y"}, "d=y"},
        {"a file becomes a made directory", {"d=x", ".wh.d d/b=y"}, "d/! d/b=y"},
        {"the same, the other way round", {"d=x", "d/b=y .wh.d"}, "d/! d/b=y"},
        {"a link becomes a made directory", {"d@e e/", "d/b=y .wh.d"}, "d/! d/b=y e/"},
        {"of what is not there", {"a=x", ".wh.b c/.wh.d"}, "a=x"},
        {"in the lowest layer", {".wh.a a=x"}, "a=x"},
        {"deep in what is not there makes no directory", {"a/ a/b=x", "a/c/d/.wh.e"}, "a/ a/b=x"},
        {"beside what makes the directory", {"", "a/c/.wh.e a/c/f=x"}, "a/! a/c/! a/c/f=x"},
        {"of a directory and in it", {"d/ d/a=x", ".wh.d d/.wh.a"}, ""},
        {"twice", {"a=x b=y", ".wh.a .wh.a"}, "b=y"},
        {"then back in a later layer", {"a=old", ".wh.a", "a=new"}, "a=new"},
        {"then again in a later layer", {"a=one", "a=two", ".wh.a"}, ""},
        {"of a directory, and a later layer makes it anew", {"d/ d/a=x", ".wh.d", "d/ d/b=y"}, "d/ d/b=y"},
        {"of a name with dots", {"..a=x .b=y ...=z", ".wh...a .wh..b .wh...."}, ""},
        {"of a name that only looks like a whiteout's", {".wha=x .wh=y", ".wh..wha"}, ".wh=y"},
        {"that is a directory, a link or a hard link by type",
         {"a=x b=y c=z", ".wh.a/ .wh.b@t .wh.c~.wh..wh.aufs"},
         ""},
        {"in a directory that only the layer has", {"", "d/ d/.wh.a d/b=x"}, "d/ d/b=x"},
    });
}

TEST_CASE("an opaque mark hides all that is below and nothing of its own layer", "[store][tree]") {
    check_cases({
        {"before its siblings", {"d/:700 d/a=x d/e/ d/e/f=y", "d/ d/.wh..wh..opq d/b=z"}, "d/ d/b=z"},
        {"after its siblings", {"d/:700 d/a=x d/e/ d/e/f=y", "d/ d/b=z d/.wh..wh..opq"}, "d/ d/b=z"},
        {"before the directory itself", {"d/ d/a=x", "d/.wh..wh..opq d/:711"}, "d/:711"},
        {"without the directory keeps its attributes", {"d/:700 d/a=x", "d/.wh..wh..opq d/b=y"}, "d/:700 d/b=y"},
        {"with nothing else", {"d/ d/a=x", "d/.wh..wh..opq"}, "d/"},
        {"below it as well", {"d/ d/e/ d/e/f=x", "d/ d/.wh..wh..opq d/e/ d/e/g=y"}, "d/ d/e/ d/e/g=y"},
        {"made directories in it are new ones",
         {"d/ d/e/:700 d/e/f=x", "d/ d/.wh..wh..opq d/e/g=y"},
         "d/ d/e/! d/e/g=y"},
        {"at the root", {"/:700 a=x d/ d/b=y", ".wh..wh..opq c=z"}, "/:700 c=z"},
        {"where nothing is", {"a=x", "d/.wh..wh..opq"}, "a=x"},
        {"over a file, with its directory", {"d=x", "d/ d/.wh..wh..opq d/a=y"}, "d/ d/a=y"},
        {"does not stop later layers", {"d/ d/a=x", "d/ d/.wh..wh..opq d/b=y", "d/c=z"}, "d/ d/b=y d/c=z"},
        {"with a whiteout beside it", {"d/ d/a=x", "d/ d/.wh..wh..opq d/.wh.a d/.wh.b"}, "d/"},
        {"only that directory", {"d/ d/a=x e/ e/a=y", "d/ d/.wh..wh..opq"}, "d/ e/ e/a=y"},
    });
}

TEST_CASE("hard links name inodes", "[store][tree]") {
    check_cases({
        {"in one layer", {"a=x b~a c~b"}, "a=x*3 b~a c~a"},
        {"in directories", {"d/ d/a=x e/ e/b~d/a"}, "d/ d/a=x*2 e/ e/b~d/a"},
        {"to a lower layer", {"a=x", "b~a"}, "a=x*2 b~a"},
        {"to a layer further down", {"d/ d/a=x", "z=y", "d/b~d/a"}, "d/ d/a=x*2 d/b~d/a z=y"},
        {"to a lower layer's group", {"a=x b~a", "c~b"}, "a=x*3 b~a c~a"},
        {"to a symbolic link", {"l@t m~l"}, "l@t*2 m~l"},
        {"to a fifo", {"p| q~p"}, "p|*2 q~p"},
        {"to a file that is replaced later in the layer: the old content", {"a=old b~a a=new"}, "a=new b=old"},
        {"to a file that was replaced earlier in the layer: the new content", {"a=old", "a=new b~a"}, "a=new*2 b~a"},
        {"to a lower file that the layer replaces later: the old content", {"a=old", "b~a a=new"}, "a=new b=old"},
        {"one name of a group is replaced", {"a=x b~a c~a", "b=y"}, "a=x*2 b=y c~a"},
        {"one name of a group is removed", {"a=x b~a", ".wh.a"}, "b=x"},
        {"all names of a group are removed", {"a=x b~a", ".wh.a .wh.b"}, ""},
        {"a link and a whiteout of its target move the file", {"a=x", "b~a .wh.a"}, "b=x"},
        {"the same, whiteout first", {"a=x", ".wh.a b~a"}, "b=x"},
        {"out of an opaque directory", {"d/ d/a=x", "d/ d/.wh..wh..opq b~d/a"}, "b=x d/"},
        {"within an opaque directory", {"d/ d/a=x", "d/ d/b~d/a d/.wh..wh..opq"}, "d/ d/b=x"},
        {"over a lower file", {"a=x b=y", "b~a"}, "a=x*2 b~a"},
        {"over a lower directory", {"a=x b/ b/c=y", "b~a"}, "a=x*2 b~a"},
        {"over a directory of its layer that holds the target", {"b/ b/a=x b~b/a"}, "b=x"},
        {"to itself, which changes nothing", {"a=x", "a~a"}, "a=x"},
        {"the group survives when a directory of it goes", {"d/ d/a=x b~d/a", ".wh.d"}, "b=x"},
        {"in an order that is not that of names", {"z=x a~z"}, "a=x*2 z~a"},
    });
}

TEST_CASE("what layers must not do is refused with the layer and the path", "[store][tree]") {
    check_cases({
        {"hard link to nothing", {"a~b"}, "malformed: entry \"a\": a hard link to \"b\", which is not there"},
        {"hard link to what comes later", {"b~a a=x"}, "malformed: which is not there"},
        {"hard link to itself", {"a~a"}, "malformed: which is not there"},
        {"hard link to a directory", {"d/ a~d"}, "malformed: a hard link to a directory"},
        {"hard link to a lower directory", {"d/", "a~d"}, "malformed: a hard link to a directory"},
        {"hard link to the root", {"a~"}, "malformed: a hard link to a directory"},
        {"hard link through a symbolic link", {"d/ d/a=x l@d b~l/a"}, "malformed: which is not there"},
        {"hard link through a lower symbolic link", {"d/ d/a=x l@d", "b~l/a"}, "malformed: which is not there"},
        {"hard link through a file that hides a directory", {"d/ d/a=x", "d=y b~d/a"}, "malformed: not there"},
        {"hard link to what a lower layer removed", {"a=x", ".wh.a", "b~a"}, "malformed: which is not there"},
        {"hard link to a whiteout", {"a=x", ".wh.a b~.wh.a"}, "malformed: which is not there"},
        {"below a file", {"a=x a/b=y"}, "malformed: entry \"a\": has entries below it but is not a directory"},
        {"below a lower file", {"a=x", "a/b=y"}, "malformed: entry \"a\": has entries below it"},
        {"below a symbolic link", {"d/ l@d l/a=x"}, "malformed: entry \"l\": has entries below it"},
        {"below a lower symbolic link", {"d/ l@d", "l/a=x"}, "malformed: entry \"l\": has entries below it"},
        {"deep below a lower symbolic link", {"d/ l@d", "l/a/b/c/"}, "malformed: entry \"l\": has entries below it"},
        {"a whiteout below a lower symbolic link", {"d/ d/a=x l@d", "l/.wh.a"}, "malformed: entry \"l\""},
        {"an opaque mark below a lower symbolic link", {"d/ d/a=x l@d", "l/.wh..wh..opq"}, "malformed: entry \"l\""},
        {"a whiteout below a file", {"a=x a/.wh.b"}, "malformed: entry \"a\""},
        {"below a hard link", {"a=x b~a b/c=y"}, "malformed: entry \"b\""},
        {"below a directory that a file replaced", {"d/ d/a=x d=y d/b=z"}, "malformed: entry \"d\""},
        {"a whiteout of no name", {"d/.wh."}, "malformed: entry \"d/.wh.\": a whiteout of no name"},
        {"a whiteout of a dot", {".wh.."}, "malformed: a whiteout of no name"},
        {"a whiteout of two dots", {".wh..."}, "malformed: a whiteout of no name"},
        {"below a whiteout", {".wh.a/b=x"}, "malformed: a whiteout with something below it"},
        {"below an opaque mark", {".wh..wh..opq/b=x"}, "malformed: a whiteout with something below it"},
        {"a root that is a file", {"=x"}, "malformed: the root is not a directory"},
        {"a root that is a hard link", {"a=x ~a"}, "malformed: the root is not a directory"},
        {"an absolute path", {"/a=x"}, "malformed: not a plain relative path"},
        {"a path out of the root", {"a/../../b=x"}, "malformed: not a plain relative path"},
        {"a path with a dot", {"./a=x"}, "malformed: not a plain relative path"},
        {"a path with an empty name", {"a//b=x"}, "malformed: not a plain relative path"},
        {"a hard link out of the root", {"a=x b~../a"}, "malformed: not a plain relative path"},
        {"the layer is named", {"a=x", "b=y", "a/b=x"}, "malformed: layer 3 (sha256:"},
    });
}

TEST_CASE("what AUFS left behind is never visible, but old images may link to it", "[store][tree]") {
    check_cases({
        {"its files", {"a=x .wh..wh.aufs .wh..wh.orph/ .wh..wh.plnk/ .wh..wh.plnk/5.6=y"}, "a=x"},
        {"they remove nothing", {"plnk=x", ".wh..wh.plnk=y d/.wh..wh.plnk"}, "plnk=x"},
        {"they make no directories", {"d/e/.wh..wh.aufs"}, ""},
        {"a hard link to one is the file", {".wh..wh.plnk/5.6=x b~.wh..wh.plnk/5.6 c~.wh..wh.plnk/5.6"}, "b=x*2 c~b"},
        {"one that links to nothing", {".wh..wh.x~nothing a=y"}, "a=y"},
        {"whiteouts in its directories do nothing", {"a=x", ".wh..wh.orph/.wh.a"}, "a=x"},
    });
}
