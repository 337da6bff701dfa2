//! Which file of a checkpoint holds which tensor: one file, or a Hugging Face folder of them.

use super::safetensors_file::{SafetensorsFile, Tensor, absent};
use super::stored::gguf;
use crate::config::python_json;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint by name.
pub(super) struct Tensors {
    /// The path in messages about the whole checkpoint: the file, or the index.
    place: PathBuf,
    file_of: BTreeMap<String, PathBuf>,
    open: HashMap<PathBuf, SafetensorsFile>,
    /// The error of the first file of the index that exists but cannot be read: its tensors are unknown.
    unread: Option<Error>,
    /// Names of tensors that two files of the index hold.
    twice: BTreeMap<String, [PathBuf; 2]>,
    /// What the user should know about other files in the folder.
    warnings: Vec<String>,
}

impl Tensors {
    /// The tensors of one `.safetensors` or GGUF file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let file =
            if gguf::is_gguf(path) { SafetensorsFile::open_gguf(path) } else { SafetensorsFile::open(path) }?;
        Ok(Tensors {
            place: path.to_path_buf(),
            file_of: file.names().map(|name| (name.to_string(), file.path_buf())).collect(),
            open: HashMap::from([(file.path_buf(), file)]),
            unread: None,
            twice: BTreeMap::new(),
            warnings: Vec::new(),
        })
    }

    /// The tensors of `model.safetensors`, else of the files of `model.safetensors.index.json`, else of the
    /// folder's only `.safetensors` file. The files of an index are opened to see what they hold: the index
    /// may be out of date.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            let mut tensors = Self::of_file(&single)?;
            let parts = files_ending(folder, ".safetensors")?.iter().any(|name| is_shard_name(name));
            if index.exists() || parts {
                let beside = if index.exists() { INDEX } else { "another checkpoint" };
                tensors.warnings.push(format!(
                    "{}: {SINGLE} is used, as transformers does; the files of {beside} beside it are not",
                    folder.display()
                ));
            }
            return Ok(tensors);
        }
        if index.exists() {
            return Self::of_index(folder, index);
        }
        let wanted = format!("wanted {SINGLE} or {INDEX}");
        let others = files_ending(folder, ".safetensors")?;
        match others.as_slice() {
            [only] => Self::of_file(&folder.join(only)),
            [] => {
                let fix = "pass a folder with safetensors weights (convert other formats with transformers' save_pretrained)";
                Err(Error::file(folder, format!("{wanted}, got a folder without .safetensors files"), fix))
            }
            several => {
                let got = format!("{wanted}, got {} other .safetensors files: {}", several.len(), {
                    super::safetensors_file::listed(several.iter().map(String::as_str))
                });
                Err(Error::file(folder, got, "pass the one file that holds the head, with its tensor's name"))
            }
        }
    }

    /// Opens every file that the index names and that exists, and takes the names of tensors from these
    /// files, as a loader would.
    fn of_index(folder: &Path, index: PathBuf) -> Result<Self> {
        let listed = read_index(folder, &index)?;
        let files: BTreeSet<PathBuf> = listed.values().cloned().collect();
        let mut warnings = Vec::new();
        let strangers: Vec<String> = files_ending(folder, ".safetensors")?
            .into_iter()
            .filter(|name| is_shard_name(name) && !files.contains(&folder.join(name)))
            .collect();
        if !strangers.is_empty() {
            let names = super::safetensors_file::listed(strangers.iter().map(String::as_str));
            warnings.push(format!(
                "{}: {names} is not in {INDEX} and not looked at: is it of another checkpoint?",
                folder.display()
            ));
        }
        let mut tensors = Tensors {
            place: index,
            file_of: listed,
            open: HashMap::new(),
            unread: None,
            twice: BTreeMap::new(),
            warnings,
        };
        let mut holder: BTreeMap<String, PathBuf> = BTreeMap::new();
        // A missing file is only an error where one of its tensors is wanted: often just the head's file is
        // fetched.
        for path in files.into_iter().filter(|path| path.exists()) {
            let file = match SafetensorsFile::open(&path) {
                Ok(file) => file,
                Err(error) => {
                    tensors.unread.get_or_insert(error);
                    continue;
                }
            };
            for name in file.names() {
                if let Some(other) = holder.insert(name.to_string(), path.clone()) {
                    tensors.twice.insert(name.to_string(), [other, path.clone()]);
                }
            }
            tensors.open.insert(path, file);
        }
        tensors.file_of.extend(holder);
        Ok(tensors)
    }

    /// The error of a file that belongs to the checkpoint but cannot be read.
    pub fn unread(&self) -> Option<&Error> {
        self.unread.as_ref()
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The path to name in messages about the checkpoint as a whole.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Names of all tensors, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    /// Refuses a GGUF file that is one part of several: a tensor that it lacks may be in another part.
    ///
    /// # Errors
    /// `File` where it is one of several.
    pub fn check_whole_gguf(&self, path: &Path) -> Result<()> {
        let parts = self.open.values().filter_map(SafetensorsFile::gguf).map(gguf::About::parts).max();
        match parts {
            Some(parts) if parts > 1 => {
                let problem =
                    format!("wanted the part that has output.weight, got one of {parts} without it");
                let fix = "pass the part that has it, or name the tensor that is the head";
                Err(Error::file(path, problem, fix))
            }
            _ => Ok(()),
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.file_of.contains_key(name)
    }

    /// Whether any tensor has the name `module`, or belongs to a module of that name.
    pub fn has_module(&self, module: &str) -> bool {
        self.names().any(|name| name.strip_prefix(module).is_some_and(|r| r.is_empty() || r.starts_with('.')))
    }

    /// The tensor of this name; opens its file and checks the header, if that has not been done.
    pub fn get(&mut self, name: &str) -> Result<Tensor> {
        let Some(path) = self.file_of.get(name) else {
            return Err(absent(&self.place, name, self.names()));
        };
        if let Some([one, other]) = self.twice.get(name) {
            let got = format!("two: in {} and in {}", one.display(), other.display());
            let fix = "two checkpoints lie in one folder: remove one of them and write the index again";
            return Err(Error::tensor(&self.place, name, "one tensor of this name", got, fix));
        }
        if let Some(file) = self.open.get(path) {
            return file.handle(name);
        }
        let file = SafetensorsFile::open(path).map_err(|error| match error {
            Error::File { path, problem, fix } => {
                Error::File { path, problem: format!("{problem} (the index says that it holds {name})"), fix }
            }
            other => other,
        })?;
        let tensor = file.handle(name)?;
        self.open.insert(path.clone(), file);
        Ok(tensor)
    }

    /// As [`Tensors::get`]; `None` where there is no such tensor.
    pub fn get_if_stored(&mut self, name: &str) -> Result<Option<Tensor>> {
        if self.contains(name) { self.get(name).map(Some) } else { Ok(None) }
    }
}

/// Whether this is the name of a part of a checkpoint, as `model-00001-of-00002.safetensors`.
fn is_shard_name(name: &str) -> bool {
    let numbers = name.strip_suffix(".safetensors").and_then(|name| name.split_once("-of-"));
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(before, total)| {
        digits(total) && before.rsplit_once('-').is_some_and(|(_, number)| digits(number))
    })
}

/// The `weight_map` of the index: tensor -> file. Every file must be inside the folder.
fn read_index(folder: &Path, index: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let fix = "download the folder again, or save it again with transformers' save_pretrained";
    let text = std::fs::read_to_string(index)
        .map_err(|e| Error::file(index, format!("cannot be read: {e}"), fix))?;
    let root: serde_json::Value = python_json::from_str(&text)
        .map_err(|e| Error::file(index, format!("wanted JSON, got an error: {e}"), fix))?;
    let Some(map) = root.get("weight_map").and_then(|m| m.as_object()) else {
        let problem = "wanted an object weight_map of tensor names to file names, got none";
        return Err(Error::file(index, problem, fix));
    };
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            Some(file) if stays_inside(file) => Ok((tensor.clone(), folder.join(file))),
            _ => {
                let wanted = "the name of a file within the folder";
                Err(Error::tensor(index, tensor, wanted, file, "correct the index; it must not lead outside"))
            }
        })
        .collect()
}

/// Whether this is a relative path without `..`. (Links in the folder may lead elsewhere: download caches
/// consist of them.)
fn stays_inside(file: &str) -> bool {
    let mut parts = Path::new(file).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn files_ending(folder: &Path, ending: &str) -> Result<Vec<String>> {
    let unreadable = |e: std::io::Error| {
        Error::file(folder, format!("cannot be read: {e}"), "pass a Hugging Face model folder")
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
