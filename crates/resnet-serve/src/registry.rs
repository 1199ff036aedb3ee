//! Models by name, and their state.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::ApiError;
use crate::model::ServedModel;

/// State of a model.
#[derive(Debug, Clone)]
pub enum ModelState {
    /// Being read and compiled.
    Loading,
    /// Ready for requests.
    Ready(Arc<ServedModel>),
    /// Could not be loaded, for this reason.
    Failed(String),
}

/// Models by name. Cheap to clone; all clones share the models.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<RwLock<BTreeMap<String, ModelState>>>);

impl Registry {
    /// Sets the state of `name`. Requests that hold the previous model finish with it.
    pub fn set(&self, name: &str, state: ModelState) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), state);
    }

    /// Removes `name`; returns `false` if there is no such model.
    pub fn remove(&self, name: &str) -> bool {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// The model `name`, or the only one that is served if `name` is `None`.
    ///
    /// # Errors
    ///
    /// [`ApiError::UnknownModel`] and [`ApiError::NotReady`]; [`ApiError::Invalid`] if there are several models and no
    /// name.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let available = || models.keys().cloned().collect::<Vec<_>>().join(", ");
        let (name, state) = match name {
            Some(name) => models.get_key_value(name).ok_or_else(|| ApiError::UnknownModel {
                name: resnet_model::escape(name),
                available: available(),
            })?,
            None => match models.len() {
                0 => {
                    return Err(ApiError::NotReady {
                        name: "default".into(),
                        reason: "no model is loaded".into(),
                    });
                }
                1 => models.first_key_value().ok_or(ApiError::ShuttingDown)?,
                _ => {
                    return Err(ApiError::Invalid(format!(
                        "several models are served; name one of {} in the path, e.g. /models/NAME",
                        available()
                    )));
                }
            },
        };
        match state {
            ModelState::Ready(model) => Ok(model.clone()),
            ModelState::Loading => Err(ApiError::NotReady { name: name.clone(), reason: "loading".into() }),
            ModelState::Failed(reason) => {
                Err(ApiError::NotReady { name: name.clone(), reason: format!("loading failed: {reason}") })
            }
        }
    }

    /// All models and their states, sorted by name.
    pub fn list(&self) -> Vec<(String, ModelState)> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// Returns `true` if there is at least one model and all are ready.
    pub fn is_ready(&self) -> bool {
        let models = self.list();
        !models.is_empty() && models.iter().all(|(_, state)| matches!(state, ModelState::Ready(_)))
    }
}
