//! Which file of a checkpoint holds which tensor: one file, or a Hugging Face folder of them.

use super::safetensors_file::{SafetensorsFile, Tensor, absent};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint by name. Files are opened when one of their tensors is first wanted.
pub(super) struct Tensors {
    /// What messages about the whole name: the file, or the index.
    place: PathBuf,
    file_of: BTreeMap<String, PathBuf>,
    open: HashMap<PathBuf, SafetensorsFile>,
}

impl Tensors {
    /// One `.safetensors` file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        Ok(Tensors {
            place: path.to_path_buf(),
            file_of: file.names().map(|name| (name.to_string(), file.path_buf())).collect(),
            open: HashMap::from([(file.path_buf(), file)]),
        })
    }

    /// `model.safetensors`, else the files of `model.safetensors.index.json`, else the folder's only
    /// `.safetensors` file.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            return Self::of_file(&single);
        }
        if index.exists() {
            return Ok(Tensors { file_of: read_index(folder, &index)?, place: index, open: HashMap::new() });
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

    /// What messages about the checkpoint as a whole name.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Names of all tensors, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.file_of.contains_key(name)
    }

    /// The tensor, its file opened and its header checked.
    pub fn get(&mut self, name: &str) -> Result<Tensor> {
        let Some(path) = self.file_of.get(name) else {
            return Err(absent(&self.place, name, self.names()));
        };
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

/// `weight_map` of the index: tensor -> file, each a name within the folder.
fn read_index(folder: &Path, index: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let fix = "download the folder again, or save it again with transformers' save_pretrained";
    let text = std::fs::read_to_string(index)
        .map_err(|e| Error::file(index, format!("cannot be read: {e}"), fix))?;
    let root: serde_json::Value = serde_json::from_str(&text)
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

/// A relative path without `..`. (Links within the folder are followed: download caches consist of them.)
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
